// Resizes every level to the common size.
#pragma once

#include "device/async_copy.h"
#include "device/memory.h"
#include "upsample_concat/axis.h"
#include "upsample_concat/fold.h"
#include "upsample_concat/tiles.h"

namespace jpu::upsample_concat {

template <class T>
struct ForwardShared {
  static constexpr int kRows = 32;
  static constexpr int kColumns = 8 * Vector<T>::kSize > 32 ? 8 * Vector<T>::kSize : 32;
  static constexpr int kStaged = kStagedBytes / sizeof(T);
  Tap<Accumulate<T>> row[kRows], column[kColumns];
  alignas(kVectorBytes) T staged[kStaged];  // kWidth: part of the small image, [channel][row][column]
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

// The part of the small image that a tile needs, and how it lies in shared memory.
struct Window {
  int row, column;    // its first pixel
  int rows, columns;  // if columns come by vectors, the last one may go beyond the image
  int plane;          // elements from one channel to the next
};

template <class T>
JPU_DEVICE Window window_of(const ForwardShared<T>& shared, Staging staging, const Tile& extent) {
  // 8 of the 32 banks from channel to channel: at a factor of 4, where neighbouring threads read neighbouring
  // words, 8 threads of each of 4 channels read all banks. At a factor of 2 no stride does better than 2 passes.
  constexpr int kBanks = 128 / sizeof(T), kShift = kBanks / 4;
  const int step = staging == Staging::kVectors ? Vector<T>::kSize : 1;
  Window window;
  window.row = shared.row[0].first;
  window.rows = shared.row[extent.height - 1].reach() + 1 - window.row;
  window.column = shared.column[0].first / step * step;
  window.columns = (shared.column[extent.width - 1].reach() - window.column) / step * step + step;
  window.plane = (window.rows * window.columns + kBanks - 1 - kShift) / kBanks * kBanks + kShift;
  return window;
}

// Copies a window of some channels to shared memory; a barrier must follow.
template <class T>
JPU_DEVICE void stage(const Level& level, const Window& window, const T* source, int channels, T* staged) {
  constexpr int V = Vector<T>::kSize;
  const bool vectors = level.staging == Staging::kVectors;
  const int step = vectors ? V : 1, steps = window.columns / step;
  for (int i = thread_index(); i < channels * window.rows * steps; i += kThreads) {
    const int x = i % steps * step, y = i / steps % window.rows, c = i / steps / window.rows;
    const T* from = source + (c * level.low_stride.c + y * level.low_stride.h + x * level.low_stride.w);
    T* to = staged + (c * window.plane + y * window.columns + x);
    if (vectors) {
      // What lies beyond the end of the row may belong to nobody; in its place come zeros that no pixel uses.
      const int inside = smaller(V, level.width - window.column - x);
      copy_async<kVectorBytes>(to, from, inside * static_cast<int>(sizeof(T)));
    } else {
      store(to, load(from));
    }
  }
  commit_copies();
  wait_copies<0>();
}

// As mix(), of the last pixel that takes part and the one before.
template <class A>
JPU_DEVICE A mix_reached(A weight_first, A before, A weight_second, A reached) {
  return weight_second == 0 ? reached : mix(weight_first, before, weight_second, reached);
}

// Resizes a tile from shared memory. The position in the small image moves by a pixel at most, so what is reached
// next makes what was reached before the other neighbour: a thread reads each pixel once along the columns of its
// vector, and interpolates each row between columns once along the rows of its walk.
template <class T>
JPU_DEVICE void resize_staged(const ForwardShared<T>& shared, const Window& window, const Tile& extent,
                              const Strides& stride, T* high) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  constexpr Tile kTile = forward_tile<V>(Path::kWidth);
  static_assert(kTile.width / V * kTile.channels * kTile.height / kWalk == kThreads, "one walk a thread");
  const int vectors = extent.width / V;
  // Channels before rows, so that the threads of a warp need the same rows at the same time.
  const int x = thread_index() % vectors, c = thread_index() / vectors % extent.channels;
  const int begin = thread_index() / vectors / extent.channels * kWalk;
  const int end = smaller(begin + kWalk, extent.height);
  if (begin >= end) return;

  A weight_first[V], weight_second[V];
  uint32_t moves = 0;  // bit v: column v reaches one pixel further than the one before
  const int first = shared.column[x].first;
  int reached = first;
  JPU_UNROLL for (int v = 0; v < V; ++v) {
    const Tap<A> tap = shared.column[v * vectors + x];
    weight_first[v] = tap.weight_first;
    weight_second[v] = tap.weight_second;
    moves |= static_cast<uint32_t>(tap.reach() - reached) << v;
    reached = tap.reach();
  }

  int next = shared.row[begin].first;  // the row to be interpolated next; `below` is of the one before it
  const T* line = shared.staged + (c * window.plane + (next - window.row) * window.columns + first - window.column);
  T* target = high + (c * stride.c + begin * stride.h + x * V);
  A above[V] = {}, below[V] = {};
  for (int y = begin; y < end; ++y, target += stride.h) {
    const Tap<A> row = shared.row[y];
    for (; next <= row.reach(); ++next, line += window.columns) {
      const T* pixel = line;
      A left = 0, right = widen(*pixel);
      JPU_UNROLL for (int v = 0; v < V; ++v) {
        if (moves >> v & 1) {
          left = right;
          right = widen(*++pixel);
        }
        above[v] = below[v];
        below[v] = mix_reached(weight_first[v], left, weight_second[v], right);
      }
    }
    Vector<T> result;
    JPU_UNROLL for (int v = 0; v < V; ++v) {
      result.at[v] = narrow<T>(mix_reached(row.weight_first, above[v], row.weight_second, below[v]));
    }
    store_vector(target, result);
  }
}

template <class T>
JPU_KERNEL(kThreads, 3)
upsample_forward(JPU_PARAMS Params p) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  ForwardShared<T>& shared = shared_memory<ForwardShared<T>>();
  if (folds_a_norm(p)) return fold_norm<T>(p);

  const Place place = locate(p, [](Path path) { return forward_tile<V>(path); });
  const Level& level = p.level[place.level];
  const Tile tile = forward_tile<V>(level.path);
  const int height = smaller(tile.height, p.height - place.h);
  const int width = smaller(tile.width, p.width - place.w);
  const int channels = smaller(tile.channels, level.channels - place.c);
  const Tile extent = {height, width, channels};

  // 1. The taps of this tile's rows and columns: integer divisions, paid once a tile. For kWidth, what the threads
  // of a warp need at the same time lies side by side: the first columns of all vectors, then the second ones.
  const int groups = level.path == Path::kWidth ? width / V : 1, members = width / groups;
  for (int i = thread_index(); i < height + width; i += kThreads) {
    if (i < height) {
      shared.row[i] = Axis(level.height, p.height, p.align_corners, level.rows).tap<A>(place.h + i);
    } else {
      const int slot = i - height, x = slot % groups * members + slot / groups;
      shared.column[slot] = Axis(level.width, p.width, p.align_corners, level.columns).tap<A>(place.w + x);
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

  Window window = {};
  bool staged = false;
  if (level.staging != Staging::kNone) {
    window = window_of(shared, level.staging, extent);
    staged = channels * window.plane <= ForwardShared<T>::kStaged;
  }

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
  } else if (staged) {
    stage(level, window, low_row(0, window.row) + window.column * level.low_stride.w, channels, shared.staged);
    block_barrier();
    resize_staged(shared, window, extent, level.high_stride, high(0, 0, 0));
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
          result.at[v] = narrow<T>(blend(first, second, level.low_stride.w, row, shared.column[v * vectors + x / V]));
        }
      }
      store_vector(high(c, y, x), result);
    }
  }
}

}  // namespace jpu::upsample_concat
