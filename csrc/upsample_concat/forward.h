// Resizes every level to the common size.
#pragma once

#include "device/memory.h"
#include "upsample_concat/axis.h"
#include "upsample_concat/tiles.h"

namespace jpu::upsample_concat {

template <class T>
struct ForwardShared {
  static constexpr int kRows = 16;
  static constexpr int kColumns = 8 * Vector<T>::kSize > 32 ? 8 * Vector<T>::kSize : 32;
  Tap<Accumulate<T>> row[kRows], column[kColumns];
};

// Between two values. A weight of zero takes no part, as where a pixel of both images coincides: that spares
// the loads of a level that is only copied, and an infinite neighbour does not spoil the pixel.
template <class A>
JPU_DEVICE A mix(A weight_first, A first, A weight_second, A second) {
  return weight_second == 0 ? first : multiply_add(weight_second, second, weight_first * first);
}

// Between two vectors.
template <class T>
JPU_DEVICE void mix_vectors(const T* first, const T* second, Accumulate<T> weight_first, Accumulate<T> weight_second,
                            Accumulate<T> (&result)[Vector<T>::kSize]) {
  const Vector<T> a = load_vector(first);
  if (weight_second == 0) {
    JPU_UNROLL for (int v = 0; v < Vector<T>::kSize; ++v) result[v] = widen(a.at[v]);
    return;
  }
  const Vector<T> b = load_vector(second);
  JPU_UNROLL for (int v = 0; v < Vector<T>::kSize; ++v) {
    result[v] = mix(weight_first, widen(a.at[v]), weight_second, widen(b.at[v]));
  }
}

// One output element from the rows that it lies between.
template <class T>
JPU_DEVICE Accumulate<T> blend(const T* first_row, const T* second_row, int64_t stride, const Tap<Accumulate<T>>& row,
                               const Tap<Accumulate<T>>& column) {
  using A = Accumulate<T>;
  const int64_t left = column.first * stride, right = column.second * stride;
  const bool two_columns = column.weight_second != 0;
  A top = widen(load(first_row + left));
  if (two_columns) top = mix(column.weight_first, top, column.weight_second, A(widen(load(first_row + right))));
  if (row.weight_second == 0) return top;
  A bottom = widen(load(second_row + left));
  if (two_columns) bottom = mix(column.weight_first, bottom, column.weight_second, A(widen(load(second_row + right))));
  return mix(row.weight_first, top, row.weight_second, bottom);
}

template <class T>
JPU_KERNEL(kThreads, 3)
upsample_forward(JPU_PARAMS Params p) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  ForwardShared<T>& shared = shared_memory<ForwardShared<T>>();

  const Place place = locate(p, [](Path path) { return forward_tile<V>(path); });
  const Level& level = p.level[place.level];
  const Tile tile = forward_tile<V>(level.path);
  const int height = smaller(tile.height, p.height - place.h);
  const int width = smaller(tile.width, p.width - place.w);
  const int channels = smaller(tile.channels, level.channels - place.c);

  // 1. The taps of this tile's rows and columns: integer divisions, paid once a tile.
  for (int i = thread_index(); i < height + width; i += kThreads) {
    if (i < height) {
      shared.row[i] = Axis(level.height, p.height, p.align_corners, level.rows).tap<A>(place.h + i);
    } else {
      shared.column[i - height] = Axis(level.width, p.width, p.align_corners, level.columns).tap<A>(place.w + i - height);
    }
  }
  block_barrier();

  // 2. The tile, 16 bytes or one element a step.
  const auto low_row = [&](int c, int row) {
    return at<const T>(level.low, level.low_stride, place.n, place.c + c, row, 0);
  };
  const auto high = [&](int c, int y, int x) {
    return at<T>(level.high, level.high_stride, place.n, place.c + c, place.h + y, place.w + x);
  };

  if (level.path == Path::kChannels) {
    const int vectors = channels / V;
    for (int i = thread_index(); i < height * width * vectors; i += kThreads) {
      const int c = i % vectors * V, x = i / vectors % width, y = i / vectors / width;
      const Tap<A> row = shared.row[y], column = shared.column[x];
      const T* first = low_row(c, row.first);
      const T* second = low_row(c, row.second);
      const int64_t left = column.first * level.low_stride.w, right = column.second * level.low_stride.w;
      A top[V], bottom[V];
      mix_vectors(first + left, first + right, column.weight_first, column.weight_second, top);
      if (row.weight_second != 0) {
        mix_vectors(second + left, second + right, column.weight_first, column.weight_second, bottom);
        JPU_UNROLL for (int v = 0; v < V; ++v) top[v] = mix(row.weight_first, top[v], row.weight_second, bottom[v]);
      }
      Vector<T> result;
      JPU_UNROLL for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(top[v]);
      store_vector(high(c, y, x), result);
    }
  } else if (level.path == Path::kElements) {
    const bool channels_inside = level.high_stride.c < level.high_stride.w;
    for (int i = thread_index(); i < height * width * channels; i += kThreads) {
      const int x = channels_inside ? i / channels % width : i % width;
      const int y = channels_inside ? i / channels / width : i / width % height;
      const int c = channels_inside ? i % channels : i / width / height;
      const Tap<A> row = shared.row[y];
      store(high(c, y, x),
            narrow<T>(blend(low_row(c, row.first), low_row(c, row.second), level.low_stride.w, row, shared.column[x])));
    }
  } else {
    const int vectors = width / V;
    for (int i = thread_index(); i < height * vectors * channels; i += kThreads) {
      const int x = i % vectors * V, y = i / vectors % height, c = i / vectors / height;
      const Tap<A> row = shared.row[y];
      const T* first = low_row(c, row.first);
      const T* second = low_row(c, row.second);
      Vector<T> result;
      if (level.path == Path::kSameWidth) {
        A mixed[V];
        mix_vectors(first + place.w + x, second + place.w + x, row.weight_first, row.weight_second, mixed);
        JPU_UNROLL for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(mixed[v]);
      } else {
        JPU_UNROLL for (int v = 0; v < V; ++v) {
          result.at[v] = narrow<T>(blend(first, second, level.low_stride.w, row, shared.column[x + v]));
        }
      }
      store_vector(high(c, y, x), result);
    }
  }
}

}  // namespace jpu::upsample_concat
