// The adjoint of the resize, in gather form: each pixel of a level collects what it gave to. No atomics, and
// a fixed order of summation, so the result is the same bit for bit on every run.
#pragma once

#include "device/memory.h"
#include "upsample_concat/axis.h"
#include "upsample_concat/fold.h"
#include "upsample_concat/tiles.h"

namespace jpu::upsample_concat {

template <class T>
struct BackwardShared {
  Accumulate<T> sum[8][kChunk];  // kWidth: a chunk of columns, summed over the rows of each small row
};

// The sum of one element, whatever its strides.
template <class T>
JPU_DEVICE Accumulate<T> gather(const T* plane, const Strides& stride, const Axis& rows, const Axis& columns, int y,
                                int x) {
  using A = Accumulate<T>;
  const int row_end = rows.support_end(y), column_end = columns.support_end(x);
  A sum = 0;
  for (int r = rows.support_begin(y); r < row_end; ++r) {
    A line = 0;
    for (int s = columns.support_begin(x); s < column_end; ++s) {
      line = multiply_add(columns.weight<A>(s, x), A(widen(load(plane + r * stride.h + s * stride.w))), line);
    }
    sum = multiply_add(rows.weight<A>(r, y), line, sum);
  }
  return sum;
}

template <class T>
JPU_DEVICE void gather_channels(const Level& level, const Place& place, const Axis& rows,
                                const Axis& columns, const Tile& extent) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  const int vectors = extent.channels / V;
  for (int i = thread_index(); i < extent.height * extent.width * vectors; i += kThreads) {
    const int c = place.c + i % vectors * V;
    const int x = place.w + i / vectors % extent.width, y = place.h + i / vectors / extent.width;
    const T* plane = at<const T>(level.high, level.high_stride, place.n, c, 0, 0);
    const int row_end = rows.support_end(y), column_end = columns.support_end(x);
    A sum[V] = {};
    for (int r = rows.support_begin(y); r < row_end; ++r) {
      A line[V] = {};
      for (int s = columns.support_begin(x); s < column_end; ++s) {
        const A weight = columns.weight<A>(s, x);
        const Vector<T> value = load_vector(plane + r * level.high_stride.h + s * level.high_stride.w);
        JPU_UNROLL for (int v = 0; v < V; ++v) line[v] = multiply_add(weight, A(widen(value.at[v])), line[v]);
      }
      const A weight = rows.weight<A>(r, y);
      JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] = multiply_add(weight, line[v], sum[v]);
    }
    Vector<T> result;
    JPU_UNROLL for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(sum[v]);
    store_vector(at<T>(level.low, level.low_stride, place.n, c, y, x), result);
  }
}

// Rows first, 16 bytes of columns a thread, into shared memory; then columns. A chunk at a time, since the
// columns that a tile collects from are as many as the resize factor makes them.
template <class T>
JPU_DEVICE void gather_width(const Level& level, const Place& place, const Axis& rows,
                             const Axis& columns, const Tile& extent) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  constexpr int kWidthTile = backward_tile<V>(Path::kWidth).width;
  static_assert(backward_tile<V>(Path::kWidth).height * kWidthTile == kThreads, "a thread owns one small pixel");
  static_assert(backward_tile<V>(Path::kWidth).channels == 1, "shared memory holds one channel");
  static_assert(kChunk % V == 0, "chunks are whole vectors");
  BackwardShared<T>& shared = shared_memory<BackwardShared<T>>();
  const T* plane = at<const T>(level.high, level.high_stride, place.n, place.c, 0, 0);

  const int own_y = thread_index() / kWidthTile, own_x = thread_index() % kWidthTile;
  const bool owns = own_y < extent.height && own_x < extent.width;
  const int own_begin = owns ? columns.support_begin(place.w + own_x) : 0;
  const int own_end = owns ? columns.support_end(place.w + own_x) : 0;
  A sum = 0;

  const int begin = columns.support_begin(place.w) / V * V;
  const int end = columns.support_end(place.w + extent.width - 1);
  for (int chunk = begin; chunk < end; chunk += kChunk) {
    const int vectors = (smaller(kChunk, end - chunk) + V - 1) / V;
    for (int i = thread_index(); i < extent.height * vectors; i += kThreads) {
      const int y = i / vectors, s = i % vectors * V;
      const int row_end = rows.support_end(place.h + y);
      A column[V] = {};
      for (int r = rows.support_begin(place.h + y); r < row_end; ++r) {
        const A weight = rows.weight<A>(r, place.h + y);
        const Vector<T> value = load_vector(plane + r * level.high_stride.h + chunk + s);
        JPU_UNROLL for (int v = 0; v < V; ++v) column[v] = multiply_add(weight, A(widen(value.at[v])), column[v]);
      }
      JPU_UNROLL for (int v = 0; v < V; ++v) shared.sum[y][s + v] = column[v];
    }
    block_barrier();
    if (owns) {
      const int stop = smaller(own_end, chunk + kChunk);
      for (int s = own_begin > chunk ? own_begin : chunk; s < stop; ++s) {
        sum = multiply_add(columns.weight<A>(s, place.w + own_x), shared.sum[own_y][s - chunk], sum);
      }
    }
    block_barrier();  // before the next chunk overwrites this one
  }
  if (owns) {
    store(at<T>(level.low, level.low_stride, place.n, place.c, place.h + own_y, place.w + own_x), narrow<T>(sum));
  }
}

template <class T>
JPU_KERNEL(kThreads, 1)
upsample_backward(JPU_PARAMS Params p) {
  constexpr int V = Vector<T>::kSize;
  if (folds_a_norm(p)) return fold_norm_backward<T>(p);

  const Place place = locate(p, [](Path path) { return backward_tile<V>(path); });
  const Level& level = p.level[place.level];
  const Tile tile = backward_tile<V>(level.path);
  const Tile extent = {smaller(tile.height, level.height - place.h), smaller(tile.width, level.width - place.w),
                       smaller(tile.channels, level.channels - place.c)};
  const Axis rows(level.height, p.height, p.align_corners, level.rows);
  const Axis columns(level.width, p.width, p.align_corners, level.columns);

  if (level.path == Path::kChannels) {
    gather_channels<T>(level, place, rows, columns, extent);
  } else if (level.path == Path::kElements) {
    const bool channels_inside = level.low_stride.c < level.low_stride.w;
    for (int i = thread_index(); i < extent.height * extent.width * extent.channels; i += kThreads) {
      const int x = channels_inside ? i / extent.channels % extent.width : i % extent.width;
      const int y = channels_inside ? i / extent.channels / extent.width : i / extent.width % extent.height;
      const int c = place.c + (channels_inside ? i % extent.channels : i / extent.width / extent.height);
      const T* plane = at<const T>(level.high, level.high_stride, place.n, c, 0, 0);
      store(at<T>(level.low, level.low_stride, place.n, c, place.h + y, place.w + x),
            narrow<T>(gather(plane, level.high_stride, rows, columns, place.h + y, place.w + x)));
    }
  } else {
    gather_width<T>(level, place, rows, columns, extent);
  }
}

}  // namespace jpu::upsample_concat
