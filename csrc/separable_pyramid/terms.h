// Weights and affine terms, as a thread reads them.
#pragma once

#include "device/memory.h"
#include "separable_pyramid/separable_pyramid.h"

namespace jpu::separable_pyramid {

template <class A>
JPU_DEVICE A affine_term(const void* term, int64_t index, A otherwise) {
  return term == nullptr ? otherwise : load(static_cast<const A*>(term) + index);
}

// The affine map of a channel of the concatenation, for a branch and an image.
template <class A>
JPU_DEVICE void load_inner(const Params& p, int index, int image, int64_t channel, A& scale, A& shift) {
  const int64_t term = int64_t{index} * p.channels + channel;
  scale = affine_term(p.inner.scale, image * p.inner.scale_image + term, A(1));
  shift = affine_term(p.inner.shift, image * p.inner.shift_image + term, A(0));
}

template <class T>
JPU_DEVICE void load_taps(const Branch& branch, int64_t channel, Accumulate<T> (&taps)[9]) {
  const T* first = static_cast<const T*>(branch.depthwise) + 9 * channel;
  JPU_UNROLL for (int i = 0; i < 9; ++i) taps[i] = widen(load(first + i));
}

}  // namespace jpu::separable_pyramid
