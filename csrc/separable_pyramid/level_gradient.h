// The gradient of the levels: each pixel gathers from every branch's dz what its taps gave. No halo is staged: what
// neighbours read again comes from the caches.
#pragma once

#include "separable_pyramid/gradient.h"

namespace jpu::separable_pyramid {

// A block's share: so many pixels of a group of channels, which are 8 vectors, or 8 single ones.
constexpr int kLevelPixels = 256;
template <class T>
JPU_HOST_DEVICE constexpr int level_channels(bool vectors) {
  return vectors ? 8 * Vector<T>::kSize : 8;
}

template <class T>
struct LevelShared {
  // [branch][tap][channel]
  alignas(kVectorBytes) Accumulate<T> weight[kMaxBranches * 9 * level_channels<T>(true)];
};

template <class T, int V>
JPU_DEVICE void gather_level(const GradientParams& g, int image, int pixel, int64_t channel, const Accumulate<T>* weight,
                             int pitch, Accumulate<T> (&sum)[V]) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int y = pixel / p.width, x = pixel % p.width;
  JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] = 0;
  for (int index = 0; index < p.branches; ++index) {
    const int dilation = p.branch[index].dilation;
    A branch[V] = {};
    for (int tap = 0; tap < 9; ++tap) {
      const int from_y = y - dilation * (tap / 3 - 1), from_x = x - dilation * (tap % 3 - 1);
      if (from_y < 0 || from_y >= p.height || from_x < 0 || from_x >= p.width) continue;
      const T* source = at<T>(g.inputs, g.inputs_stride, image - g.first_image, channel, from_y, from_x) +
                        index * g.inputs_branch;
      const A* taps = weight + (9 * index + tap) * pitch;
      if constexpr (V > 1) {
        const Vector<T> value = load_vector(source);
        JPU_UNROLL for (int v = 0; v < V; v += Vector<A>::kSize) {
          const Vector<A> weights = read_vector(taps + v);
          JPU_UNROLL for (int i = 0; i < Vector<A>::kSize; ++i) {
            branch[v + i] = multiply_add(weights.at[i], A(widen(value.at[v + i])), branch[v + i]);
          }
        }
      } else {
        branch[0] = multiply_add(taps[0], A(widen(load(source))), branch[0]);
      }
    }
    JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] += branch[v];
  }
}

template <class T>
JPU_KERNEL(kThreads, 1)
pyramid_level_gradient(JPU_PARAMS GradientParams g) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  LevelShared<T>& shared = shared_memory<LevelShared<T>>();
  const Params& p = g.forward;

  const int which = entry_of_block(g.level, p.levels, &LevelGradient::first_block);
  const LevelGradient& target = g.level[which];
  const int group = level_channels<T>(target.vectors);
  uint32_t rest = block_index() - target.first_block;
  const uint32_t pixel_tiles = static_cast<uint32_t>(g.pixel_tiles);
  const int first_pixel = static_cast<int>(rest % pixel_tiles) * kLevelPixels;
  rest /= pixel_tiles;
  const int first = static_cast<int>(rest % target.channel_tiles) * group;
  const int image = g.first_image + static_cast<int>(rest / target.channel_tiles);
  const int channels = smaller(group, p.level[which].channels - first);
  const int pixels = smaller(kLevelPixels, p.height * p.width - first_pixel);
  const int64_t channel = p.level[which].first + first;

  for (int i = thread_index(); i < p.branches * 9 * channels; i += kThreads) {
    const int c = i / 9 % channels, index = i / 9 / channels;
    const T* taps = static_cast<const T*>(p.branch[index].depthwise) + 9 * (channel + c);
    store(&shared.weight[(9 * index + i % 9) * group + c], A(widen(load(taps + i % 9))));
  }
  block_barrier();
  if (target.vectors) {
    for (int i = thread_index(); i < pixels * (channels / V); i += kThreads) {
      const int c = i % (channels / V) * V, pixel = first_pixel + i / (channels / V);
      A sum[V];
      gather_level<T, V>(g, image, pixel, channel + c, shared.weight + c, group, sum);
      T* gradient = at<T>(target.data, target.stride, image, first + c, pixel / p.width, pixel % p.width);
      if (g.add) {
        const Vector<T> before = read_vector(gradient);
        JPU_UNROLL for (int v = 0; v < V; ++v) sum[v] += widen(before.at[v]);
      }
      Vector<T> result;
      JPU_UNROLL for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(sum[v]);
      store_vector(gradient, result);
    }
    return;
  }
  const bool channels_inside = target.stride.c < target.stride.w;
  for (int i = thread_index(); i < pixels * channels; i += kThreads) {
    const int c = channels_inside ? i % channels : i / pixels;
    const int pixel = first_pixel + (channels_inside ? i / channels : i % pixels);
    A sum[1];
    gather_level<T, 1>(g, image, pixel, channel + c, shared.weight + c, group, sum);
    T* gradient = at<T>(target.data, target.stride, image, first + c, pixel / p.width, pixel % p.width);
    if (g.add) sum[0] += widen(*gradient);
    store(gradient, narrow<T>(sum[0]));
  }
}

}  // namespace jpu::separable_pyramid
