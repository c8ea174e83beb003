// Norm and ReLU of a tile: all loads first, then the terms of its channels, then all stores.
#pragma once

#include <type_traits>

#include "common/blocks.h"
#include "common/norm.h"
#include "device/memory.h"
#include "device/word.h"
#include "norm_relu/norm_relu.h"

namespace jpu::norm_relu {

template <class T>
struct Terms {
  using A = Accumulate<T>;
  alignas(kVectorBytes) A scale[kMostChannels];
  alignas(kVectorBytes) A shift[kMostChannels];
};

// What a thread owns at each step. Elements of two bytes stay in words of two: eight vectors of single ones, which a
// compiler may hold in a register each, would not fit.
template <class T, int V>
struct Pack {
  static constexpr bool kWords = V > 1 && sizeof(T) == 2;
  static constexpr int kSize = kWords ? kWordSize<T> : 1;  // elements of a part
  using Part = std::conditional_t<kWords, uint32_t, T>;
  Part at[V / kSize];
};

template <class T, int V>
JPU_DEVICE Pack<T, V> load_pack(const T* address) {
  using Part = typename Pack<T, V>::Part;
  if constexpr (V == 1) {
    return {load(address)};
  } else {
    const Vector<Part> vector = load_vector(reinterpret_cast<const Part*>(address));
    Pack<T, V> result;
    JPU_UNROLL for (int i = 0; i < Vector<Part>::kSize; ++i) result.at[i] = vector.at[i];
    return result;
  }
}

template <class T, int V>
JPU_DEVICE void store_pack(T* address, const Pack<T, V>& pack) {
  using Part = typename Pack<T, V>::Part;
  if constexpr (V == 1) {
    store(address, pack.at[0]);
  } else {
    Vector<Part> vector;
    JPU_UNROLL for (int i = 0; i < Vector<Part>::kSize; ++i) vector.at[i] = pack.at[i];
    store_vector(reinterpret_cast<Part*>(address), vector);
  }
}

// A lane's terms of V neighbouring channels.
template <int V, class A>
JPU_DEVICE void read_terms(const A* terms, A (&result)[V]) {
  if constexpr (V == 1) {
    result[0] = terms[0];
  } else {
    constexpr int kSize = Vector<A>::kSize;
    static_assert(V % kSize == 0, "a vector of elements has whole vectors of terms");
    JPU_UNROLL for (int v = 0; v < V; v += kSize) {
      const Vector<A> vector = read_vector(terms + v);
      JPU_UNROLL for (int i = 0; i < kSize; ++i) result[v + i] = vector.at[i];
    }
  }
}

JPU_DEVICE int64_t offset_in(const Level& level, const Strides& stride, int n, int c, uint32_t pixel) {
  if (level.height == 1) return offset_of(stride, n, c, 0, pixel);
  const uint32_t width = static_cast<uint32_t>(level.width);
  return offset_of(stride, n, c, pixel / width, pixel % width);
}

template <class A>
JPU_DEVICE A norm_relu(A x, A scale, A shift) {
  const A value = multiply_add(scale, x, shift);
  return value < 0 ? A(0) : value;  // NaN passes
}

// Of a whole pack.
//
// Args:
//   Step: from the terms of an element to those of the next, 0 where one channel has them all.
template <int Step, class T, int V, class A, int N>
JPU_DEVICE Pack<T, V> norm_relu_pack(const Pack<T, V>& x, const A (&scale)[N], const A (&shift)[N]) {
  constexpr int kSize = Pack<T, V>::kSize;
  Pack<T, V> y;
  JPU_UNROLL for (int i = 0; i < V / kSize; ++i) {
    if constexpr (Pack<T, V>::kWords) {
      A values[kSize];
      widen_word<T>(x.at[i], values);
      JPU_UNROLL for (int k = 0; k < kSize; ++k) {
        const int v = (i * kSize + k) * Step;
        values[k] = norm_relu(values[k], scale[v], shift[v]);
      }
      y.at[i] = narrow_word<T>(values);
    } else {
      y.at[i] = narrow<T>(norm_relu(A(widen(x.at[i])), scale[i * Step], shift[i * Step]));
    }
  }
  return y;
}

// A block's tile of a level: V elements of channels a lane, and rows of pixels; or the other way round.
template <class T, int V, bool ChannelsInside>
JPU_DEVICE void serve(const Level& level, bool norms_in_sums, Terms<T>& terms) {
  using A = Accumulate<T>;
  uint32_t rest = block_index() - level.first_block;
  const int lane = thread_index() % level.lanes, row = thread_index() / level.lanes;
  // Unsigned, since pixels are counted up to 2³¹ and the last tile reaches beyond.
  const uint32_t first_inner = rest % level.inner_tiles * level.lanes * V;
  rest /= level.inner_tiles;
  const uint32_t first_outer = rest % level.outer_tiles * level.rows * kWalk;
  const int n = static_cast<int>(rest / level.outer_tiles);
  const uint32_t channels = level.channels, pixels = static_cast<uint32_t>(level.height) * level.width;
  const uint32_t inners = ChannelsInside ? channels : pixels, outers = ChannelsInside ? pixels : channels;
  const uint32_t inner = first_inner + lane * V, outer = first_outer + row;
  const bool takes_part = inner < inners && row < level.rows;

  // 1. All that this thread reads: the terms below take a while, in which memory can answer.
  Pack<T, V> x[kWalk] = {};
  JPU_UNROLL for (int i = 0; i < kWalk; ++i) {
    const uint32_t at_outer = outer + i * level.rows;
    if (takes_part && at_outer < outers) {
      const int c = static_cast<int>(ChannelsInside ? inner : at_outer);
      x[i] = load_pack<T, V>(static_cast<const T*>(level.in) +
                             offset_in(level, level.in_stride, n, c, ChannelsInside ? at_outer : inner));
    }
  }

  // 2. The terms of the tile's channels, one a thread.
  const uint32_t first_channel = ChannelsInside ? first_inner : first_outer;
  const int most = ChannelsInside ? level.lanes * V : level.rows * kWalk;
  for (int i = thread_index(); i < most && first_channel + i < channels; i += kThreads) {
    const Affine<A> affine = affine_of<T>(level, norms_in_sums, static_cast<int>(first_channel + i));
    terms.scale[i] = affine.scale;
    terms.shift[i] = affine.shift;
  }
  block_barrier();
  if (!takes_part) return;

  // 3. The results. A lane of channels keeps their terms in registers; one of pixels has another channel a step.
  A scale[ChannelsInside ? V : 1], shift[ChannelsInside ? V : 1];
  if constexpr (ChannelsInside) {
    read_terms<V>(terms.scale + lane * V, scale);
    read_terms<V>(terms.shift + lane * V, shift);
  }
  JPU_UNROLL for (int i = 0; i < kWalk; ++i) {
    const uint32_t at_outer = outer + i * level.rows;
    if (at_outer >= outers) break;
    if constexpr (!ChannelsInside) {
      scale[0] = terms.scale[at_outer - first_outer];
      shift[0] = terms.shift[at_outer - first_outer];
    }
    const int c = static_cast<int>(ChannelsInside ? inner : at_outer);
    store_pack(static_cast<T*>(level.out) +
                   offset_in(level, level.out_stride, n, c, ChannelsInside ? at_outer : inner),
               norm_relu_pack<ChannelsInside ? 1 : 0>(x[i], scale, shift));
  }
}

template <class T>
JPU_KERNEL(kThreads, 3)
norm_relu_forward(JPU_PARAMS Params p) {
  constexpr int V = Vector<T>::kSize;
  static_assert(kVectorLanes * V <= kMostChannels && kElementLanes <= kMostChannels, "or terms would not fit");
  Terms<T>& terms = shared_memory<Terms<T>>();
  const Level& level = p.level[entry_of_block(p.level, p.levels, &Level::first_block)];
  switch (level.path) {
    case Path::kChannels:
      return serve<T, V, true>(level, p.norms_in_sums, terms);
    case Path::kPixels:
      return serve<T, V, false>(level, p.norms_in_sums, terms);
    case Path::kChannelElements:
      return serve<T, 1, true>(level, p.norms_in_sums, terms);
    default:
      return serve<T, 1, false>(level, p.norms_in_sums, terms);
  }
}

}  // namespace jpu::norm_relu
