// What the derivatives share: their parameters, and g, the gradient after the ReLU.
//
// With y = out_scale · q + out_shift and g = G · [output > 0], a branch's derivatives are
//   out_shift: Σ g        dq = out_scale · g         dh = Pᵀ · dq      dz = scale · dh
//   B = Σ g · hᵀ          pointwise: out_scale · B   out_scale: Σ_c P · B
//   E_t = Σ dh · u_t      depthwise: scale · E       scale: Σ_t w · E  shift: Σ dh
// with Σ over pixels and u_t the input at tap t. Neither q nor z is needed.
#pragma once

#include "separable_pyramid/patch.h"
#include "separable_pyramid/product.h"
#include "separable_pyramid/terms.h"

namespace jpu::separable_pyramid {

// V values of the type of sums, into shared memory; the address is a multiple of 16 bytes.
template <class A, int V>
JPU_DEVICE void store_row(A* target, const A (&value)[V]) {
  static_assert(V % Vector<A>::kSize == 0);
  JPU_UNROLL for (int i = 0; i < V; i += Vector<A>::kSize) {
    Vector<A> part;
    JPU_UNROLL for (int v = 0; v < Vector<A>::kSize; ++v) part.at[v] = value[i + v];
    store_vector(target + i, part);
  }
}

// g of outputs first to first + V - 1 of a branch at a pixel; 0 for those that it lacks. Where the output is NaN
// its gradient passes, as in PyTorch's ReLU.
template <class T>
JPU_DEVICE void load_gradient(const GradientParams& g, int index, int image, const Pixel& pixel, int first,
                              Accumulate<T> (&result)[Vector<T>::kSize]) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  const Params& p = g.forward;
  JPU_UNROLL for (int v = 0; v < V; ++v) result[v] = 0;
  if (!pixel.inside || first >= p.outputs) return;
  const int64_t channel = int64_t{index} * p.outputs + first;
  const T* gradient = at<T>(g.gradient, g.gradient_stride, image, channel, pixel.y, pixel.x);
  const T* output = p.relu ? at<T>(p.output, p.output_stride, image, channel, pixel.y, pixel.x) : nullptr;
  if (g.gradient_vectors) {  // and those of the output
    const Vector<T> values = load_vector(gradient);
    const Vector<T> outputs = p.relu ? load_vector(output) : Vector<T>{};
    JPU_UNROLL for (int v = 0; v < V; ++v) {
      if (!p.relu || !(widen(outputs.at[v]) <= 0)) result[v] = widen(values.at[v]);
    }
    return;
  }
  JPU_UNROLL for (int v = 0; v < V; ++v) {
    if (first + v >= p.outputs) break;
    if (!p.relu || !(widen(load(output + v * p.output_stride.c)) <= 0)) {
      result[v] = A(widen(load(gradient + v * g.gradient_stride.c)));
    }
  }
}

}  // namespace jpu::separable_pyramid
