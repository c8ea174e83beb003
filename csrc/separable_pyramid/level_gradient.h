// The gradient of the levels: each pixel gathers from every branch's dz what its taps gave. No halo is staged: what
// neighbours read again comes from the caches. A thread has a strip: some channels of a few pixels of a column, so that
// weights are read once for all of them. If these lie the dilation apart, so is each row of dz.
#pragma once

#include "separable_pyramid/gradient.h"

namespace jpu::separable_pyramid {

// Pixels of a strip; `spaced` is whether they lie the only branch's dilation apart. Of several branches there are sums
// of one branch beside those of all, for which a thread has the registers of half as many.
JPU_HOST_DEVICE constexpr int level_rows(bool spaced) { return spaced ? 4 : 2; }

// A block's share: so many pixels of an image, of so many lanes' channels, each a vector or a single one.
constexpr int kLevelPixels = 256;
constexpr int kLevelLanes = 8;
template <class T>
JPU_HOST_DEVICE constexpr int level_channels(bool vectors) {
  return vectors ? kLevelLanes * Vector<T>::kSize : kLevelLanes;
}

// Rows of strips whose pixels are `step` apart: of each residue class as many as the largest one has.
constexpr int lines_of_strips(int height, int step, int rows) {
  return smaller(step, height) * ceil_divide(ceil_divide(height, step), rows);
}

template <class T>
struct LevelShared {
  using A = Accumulate<T>;
  static constexpr int kPart = Vector<A>::kSize;  // weights of 16 bytes
  // Taps are 16 bytes more than their weights apart: threads that write one channel's meet other banks.
  static constexpr int kPitch = level_channels<T>(true) + kPart;

  // [branch][tap][channel], where the first 16 bytes of all lanes lie side by side, then the next ones.
  alignas(kVectorBytes) A weight[kMaxBranches][9][kPitch];

  template <int V>
  JPU_DEVICE static constexpr int position(int c) {
    if constexpr (V == 1) return c;
    return (c % V / kPart * kLevelLanes + c / V) * kPart + c % kPart;
  }

  // Those of column j of a lane's taps.
  template <int V>
  JPU_DEVICE void read(int branch, int j, int lane, A (&taps)[3][V]) const {
    JPU_UNROLL for (int i = 0; i < 3; ++i) {
      const A* first = weight[branch][3 * i + j];
      if constexpr (V == 1) {
        taps[i][0] = first[lane];
      } else {
        JPU_UNROLL for (int v = 0; v < V; v += kPart) {
          const Vector<A> part = read_vector(first + (v / kPart * kLevelLanes + lane) * kPart);
          JPU_UNROLL for (int e = 0; e < kPart; ++e) taps[i][v + e] = part.at[e];
        }
      }
    }
  }
};

// dz of V channels, or zeros where the image has no such pixel.
template <class T, int V>
JPU_DEVICE void load_pixel(const T* source, bool inside, Accumulate<T> (&value)[V]) {
  if constexpr (V == 1) {
    value[0] = inside ? widen(load(source)) : Accumulate<T>(0);
  } else {
    const Vector<T> vector = load_vector_if(inside, source);
    JPU_UNROLL for (int v = 0; v < V; ++v) value[v] = widen(vector.at[v]);
  }
}

template <class A, int V>
JPU_DEVICE void add_products(const A (&taps)[V], const A (&value)[V], A (&sum)[V]) {
  JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] = multiply_add(taps[v], value[v], sum[v]);
}

// Adds to the sums of a strip from (y, x) down what a branch gives: columns of taps from the left, each from the bottom.
// `pixel` is where the branch's dz begins at (y, x).
template <class T, int V, bool kSpaced, int kRows = level_rows(kSpaced)>
JPU_DEVICE void gather_strip(const GradientParams& g, int index, int y, int x, const T* pixel,
                             const LevelShared<T>& shared, int lane, Accumulate<T> (&sum)[kRows][V]) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int dilation = p.branch[index].dilation;
  const int64_t below = g.inputs_stride.h, across = dilation * g.inputs_stride.w, down = dilation * below;
  const auto load_row = [&](const T* row, int from_y, A(&value)[V]) {
    load_pixel(row, static_cast<uint32_t>(from_y) < static_cast<uint32_t>(p.height), value);
  };
  const T* column = pixel + 2 * across;
  JPU_UNROLL_BY(1) for (int j = 0; j < 3; ++j) {
    column -= across;
    const int from_x = x - dilation * (j - 1);
    if (from_x < 0 || from_x >= p.width) continue;
    A taps[3][V], value[V];
    shared.template read<V>(index, j, lane, taps);
    if constexpr (kSpaced) {
      const T* row = column - down;
      JPU_UNROLL for (int r = 0; r < kRows + 2; ++r, row += down) {
        load_row(row, y + dilation * (r - 1), value);
        JPU_UNROLL for (int i = 0; i < 3; ++i) {
          const int k = r + i - 2;
          if (k >= 0 && k < kRows) add_products(taps[i], value, sum[k]);
        }
      }
    } else {
      JPU_UNROLL for (int k = 0; k < kRows; ++k) {
        const T* row = column + k * below - down;
        JPU_UNROLL for (int i = 2; i >= 0; --i, row += down) {
          load_row(row, y + k - dilation * (i - 1), value);
          add_products(taps[i], value, sum[k]);
        }
      }
    }
  }
}

// What a block works on.
struct LevelShare {
  int level, image;
  int channel, channels;  // its first one, within the level, and how many
  int tile;               // of the image's strips
};

template <class T>
JPU_DEVICE LevelShare level_share_of_block(const GradientParams& g) {
  const int level = entry_of_block(g.level, g.forward.levels, &LevelGradient::first_block);
  const LevelGradient& target = g.level[level];
  const int group = level_channels<T>(target.vectors);
  const uint32_t tiles = static_cast<uint32_t>(g.strip_tiles);
  const uint32_t block = block_index() - target.first_block, rest = block / tiles;
  const int channel = static_cast<int>(rest % target.channel_tiles) * group;
  return {level, g.first_image + static_cast<int>(rest / target.channel_tiles), channel,
          smaller(group, g.forward.level[level].channels - channel), static_cast<int>(block % tiles)};
}

// V values of the type of sums, rounded once, in place of what is there or added to it.
template <class T, int V>
JPU_DEVICE void put_gradient(T* gradient, bool add, Accumulate<T> (&sum)[V]) {
  if constexpr (V == 1) {
    if (add) sum[0] += widen(*gradient);
    store(gradient, narrow<T>(sum[0]));
  } else {
    if (add) {
      const Vector<T> before = read_vector(gradient);
      JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] += widen(before.at[v]);
    }
    Vector<T> result;
    JPU_UNROLL for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(sum[v]);
    store_vector(gradient, result);
  }
}

// kSpaced: there is one branch, whose dilation is the strips' step.
template <class T, int V, bool kSpaced>
JPU_DEVICE void level_gradient_of(const GradientParams& g, const LevelShare& share, LevelShared<T>& shared) {
  using A = Accumulate<T>;
  constexpr int kRows = level_rows(kSpaced), kStrips = kLevelPixels / kRows;
  const Params& p = g.forward;
  const LevelGradient& target = g.level[share.level];
  const int64_t channel = p.level[share.level].first + share.channel;
  JPU_UNROLL_BY(1) for (int index = 0; index < p.branches; ++index) {
    const T* first = static_cast<const T*>(p.branch[index].depthwise) + 9 * channel;
    JPU_UNROLL_BY(1) for (int i = thread_index(); i < 9 * share.channels; i += kThreads) {
      store(&shared.weight[index][i % 9][LevelShared<T>::template position<V>(i / 9)], A(widen(load(first + i))));
    }
  }
  block_barrier();

  const int step = kSpaced ? p.branch[0].dilation : 1;
  const bool channels_inside = V > 1 || target.stride.c < target.stride.w;
  JPU_UNROLL_BY(1) for (int i = thread_index(); i < kStrips * kLevelLanes; i += kThreads) {
    const int lane = channels_inside ? i % kLevelLanes : i / kStrips, c = lane * V;
    const int strip = share.tile * kStrips + (channels_inside ? i / kLevelLanes : i % kStrips);
    const int line = strip / p.width, x = strip % p.width;
    const int y = line / step * (kRows * step) + line % step;
    if (c >= share.channels || y >= p.height) continue;
    const T* pixel = at<T>(g.inputs, g.inputs_stride, share.image - g.first_image, channel + c, y, x);
    A sum[kRows][V] = {};
    if constexpr (kSpaced) {
      gather_strip<T, V, true>(g, 0, y, x, pixel, shared, lane, sum);
    } else {
      JPU_UNROLL_BY(1) for (int index = 0; index < p.branches; ++index) {
        A branch[kRows][V] = {};
        gather_strip<T, V, false>(g, index, y, x, pixel + index * g.inputs_branch, shared, lane, branch);
        JPU_UNROLL for (int k = 0; k < kRows; ++k) {
          JPU_UNROLL for (int v = 0; v < V; ++v) sum[k][v] += branch[k][v];
        }
      }
    }
    T* gradient = at<T>(target.data, target.stride, share.image, share.channel + c, y, x);
    JPU_UNROLL for (int k = 0; k < kRows; ++k) {
      if (y + k * step < p.height) put_gradient(gradient + k * step * target.stride.h, g.add, sum[k]);
    }
  }
}

template <class T>
JPU_KERNEL(kThreads, 2)
pyramid_level_gradient(JPU_PARAMS GradientParams g) {
  constexpr int V = Vector<T>::kSize;
  LevelShared<T>& shared = shared_memory<LevelShared<T>>();
  const LevelShare share = level_share_of_block<T>(g);
  if (g.level[share.level].vectors) {
    if (g.spaced) {
      level_gradient_of<T, V, true>(g, share, shared);
    } else {
      level_gradient_of<T, V, false>(g, share, shared);
    }
  } else if (g.spaced) {
    level_gradient_of<T, 1, true>(g, share, shared);
  } else {
    level_gradient_of<T, 1, false>(g, share, shared);
  }
}

}  // namespace jpu::separable_pyramid
