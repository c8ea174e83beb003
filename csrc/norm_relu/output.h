// Norm and ReLU of rows.
#pragma once

#include "norm_relu/row_terms.h"

namespace jpu::norm_relu {

template <class T, int V>
JPU_KERNEL(kThreads, 3)
rows_output(JPU_PARAMS RowParams p) {
  using A = Accumulate<T>;
  const RowPlace place = place_in_rows<V>(p);
  if (!place.takes_part) return;
  const int64_t set = place.rest / p.pixel_tiles;
  const uint32_t tile = static_cast<uint32_t>(p.rows * p.rounds * kOutputPixels);
  const int64_t pixel = int64_t{place.rest % p.pixel_tiles} * tile + place.row;
  const int own = own_pixels(p.group_pixels - pixel, p.rows, tile);
  const int64_t begin = (set * p.group_pixels + pixel) * p.pitch + place.channel;
  const int64_t step = int64_t{p.rows} * p.pitch;
  const T* q = static_cast<const T*>(p.q) + begin;
  T* out = static_cast<T*>(p.out) + begin;

  A scale[V], shift[V];
  const A* terms = static_cast<const A*>(p.statistics) + set * kStatistics * p.pitch + place.channel;
  load_terms<V>(terms + int64_t{kScale} * p.pitch, scale);
  load_terms<V>(terms + int64_t{kShift} * p.pitch, shift);
  JPU_UNROLL_BY(1) for (int i = 0; i < own; i += kOutputPixels) {
    Pack<T, V> x[kOutputPixels] = {};
    JPU_UNROLL for (int j = 0; j < kOutputPixels; ++j) {
      if (i + j < own) x[j] = load_pack<T, V>(q + j * step);
    }
    JPU_UNROLL for (int j = 0; j < kOutputPixels; ++j) {
      if (i + j < own) store_pack(out + j * step, norm_relu_pack<1>(x[j], scale, shift));
    }
    q += kOutputPixels * step;
    out += kOutputPixels * step;
  }
}

}  // namespace jpu::norm_relu
