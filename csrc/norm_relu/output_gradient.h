// The gradient of what the last norm takes, of some branches.
#pragma once

#include "norm_relu/row_terms.h"

namespace jpu::norm_relu {

template <class T, int V>
JPU_KERNEL(kThreads, 2)
rows_output_gradient(JPU_PARAMS RowParams p) {
  using A = Accumulate<T>;
  const RowPlace place = place_in_rows<V>(p);
  if (!place.takes_part) return;
  const int64_t set = place.rest / p.pixel_tiles;
  const uint32_t tile = static_cast<uint32_t>(p.rows * p.rounds * kGradientPixels);
  const int64_t pixel = int64_t{place.rest % p.pixel_tiles} * tile + place.row;
  const int own = own_pixels(p.group_pixels - pixel, p.rows, tile);
  const int64_t row = set * p.group_pixels + pixel, column = p.first + place.channel;
  const int64_t step = int64_t{p.rows} * p.pitch, out_step = int64_t{p.rows} * p.width;
  const T* gradient = static_cast<const T*>(p.gradient) + row * p.pitch + column;
  const T* q = static_cast<const T*>(p.q) + row * p.pitch + column;
  const uint32_t channel = static_cast<uint32_t>(place.channel), width = static_cast<uint32_t>(p.width);
  const int64_t first_row = int64_t{p.images} * p.pixels * (channel / width);
  T* out = static_cast<T*>(p.out) + (first_row + row) * p.width + channel % width;

  A mean[V], rstd[V], scale[V], shift[V], k[V], a[V], b[V];
  const A* terms = static_cast<const A*>(p.statistics) + set * kStatistics * p.pitch + column;
  load_terms<V>(terms + int64_t{kMean} * p.pitch, mean);
  load_terms<V>(terms + int64_t{kInverseDeviation} * p.pitch, rstd);
  load_terms<V>(terms + int64_t{kScale} * p.pitch, scale);
  load_terms<V>(terms + int64_t{kShift} * p.pitch, shift);
  const A* factors = static_cast<const A*>(p.coefficients) + set * kCoefficients * p.pitch + column;
  load_terms<V>(factors + int64_t{kOfGradient} * p.pitch, k);
  load_terms<V>(factors + int64_t{kOfOne} * p.pitch, a);
  load_terms<V>(factors + int64_t{kOfNormalised} * p.pitch, b);
  JPU_UNROLL_BY(1) for (int i = 0; i < own; i += kGradientPixels) {
    Pack<T, V> g[kGradientPixels] = {}, x[kGradientPixels] = {};
    JPU_UNROLL for (int j = 0; j < kGradientPixels; ++j) {
      if (i + j < own) {
        g[j] = load_pack<T, V>(gradient + j * step);
        x[j] = load_pack<T, V>(q + j * step);
      }
    }
    JPU_UNROLL for (int j = 0; j < kGradientPixels; ++j) {
      if (i + j >= own) break;
      A g_of[V], q_of[V];
      unpack(g[j], g_of);
      unpack(x[j], q_of);
      JPU_UNROLL for (int v = 0; v < V; ++v) {
        const A passed = behind_relu<T>(g_of[v], q_of[v], scale[v], shift[v]);
        const A normalised = (q_of[v] - mean[v]) * rstd[v];
        // Of fixed statistics b is 0, and infinite q have the gradient that they have in PyTorch.
        const A rest = b[v] == 0 ? a[v] : multiply_add(b[v], normalised, a[v]);
        g_of[v] = multiply_add(k[v], passed, -rest);
      }
      store_pack(out + j * out_step, pack_of<T, V>(g_of));
    }
    gradient += kGradientPixels * step;
    q += kGradientPixels * step;
    out += kGradientPixels * out_step;
  }
}

}  // namespace jpu::norm_relu
