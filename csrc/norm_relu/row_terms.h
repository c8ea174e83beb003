// What the kernels of rows share: where a thread stands, a channel's terms, and the gradient behind the ReLU.
#pragma once

#include "norm_relu/forward.h"
#include "norm_relu/rows.h"

namespace jpu::norm_relu {

struct RowPlace {
  uint32_t rest;    // of the block's number, once its channels are taken off
  int64_t channel;  // the first of a thread's, counted from the first that is served
  int row;
  bool takes_part;
};

template <int V>
JPU_DEVICE RowPlace place_in_rows(const RowParams& p) {
  const uint32_t tiles = static_cast<uint32_t>(p.channel_tiles);
  const int lane = thread_index() % p.lanes, row = thread_index() / p.lanes;
  // Blocks that run at the same time read what lies side by side.
  const int64_t channel = (int64_t{block_index() % tiles} * p.lanes + lane) * V;
  return {block_index() / tiles, channel, row, channel < p.channels && row < p.rows};
}

// Of `left` pixels, those that a thread has who begins at the first of them: each `rows`-th, of at most `reach`. Its
// row may begin behind the last one, but not by as many as there are rows.
JPU_DEVICE int own_pixels(int64_t left, int rows, int64_t reach) {
  const int64_t pixels = left < reach ? left : reach;
  return static_cast<int>(static_cast<uint32_t>(pixels + rows - 1) / static_cast<uint32_t>(rows));  // quick in 32 bits
}

// V neighbouring channels' values.
template <int V, class A>
JPU_DEVICE void load_terms(const A* address, A (&result)[V]) {
  if constexpr (V == 1) {
    result[0] = load(address);
  } else {
    constexpr int kSize = Vector<A>::kSize;
    static_assert(V % kSize == 0, "a vector of elements has whole vectors of terms");
    JPU_UNROLL for (int v = 0; v < V; v += kSize) {
      const Vector<A> vector = load_vector(address + v);
      JPU_UNROLL for (int i = 0; i < kSize; ++i) result[v + i] = vector.at[i];
    }
  }
}

template <class T, int V, class A>
JPU_DEVICE void unpack(const Pack<T, V>& pack, A (&value)[V]) {
  constexpr int kSize = Pack<T, V>::kSize;
  JPU_UNROLL for (int i = 0; i < V / kSize; ++i) {
    if constexpr (Pack<T, V>::kWords) {
      A pair[kSize];
      widen_word<T>(pack.at[i], pair);
      JPU_UNROLL for (int k = 0; k < kSize; ++k) value[i * kSize + k] = pair[k];
    } else {
      value[i] = widen(pack.at[i]);
    }
  }
}

template <class T, int V, class A>
JPU_DEVICE Pack<T, V> pack_of(const A (&value)[V]) {
  constexpr int kSize = Pack<T, V>::kSize;
  Pack<T, V> pack;
  JPU_UNROLL for (int i = 0; i < V / kSize; ++i) {
    if constexpr (Pack<T, V>::kWords) {
      A pair[kSize];
      JPU_UNROLL for (int k = 0; k < kSize; ++k) pair[k] = value[i * kSize + k];
      pack.at[i] = narrow_word<T>(pair);
    } else {
      pack.at[i] = narrow<T>(value[i]);
    }
  }
  return pack;
}

// The largest number of the type of sums that rounds to 0: half of the smallest above it, which goes to even.
template <class T>
inline constexpr Accumulate<T> kRoundsToZero = 0;
template <>
inline constexpr float kRoundsToZero<float16> = 0x1p-25f;
template <>
inline constexpr float kRoundsToZero<bfloat16> = 0x1p-134f;

// Where the output is not ≤ 0 as it is stored, of which rounding may have made a 0. That is found out without rounding,
// since a GPU is slow to round halves one by one. NaN lets gradients through.
template <class T>
JPU_DEVICE Accumulate<T> behind_relu(Accumulate<T> gradient, Accumulate<T> q, Accumulate<T> scale,
                                     Accumulate<T> shift) {
  using A = Accumulate<T>;
  return multiply_add(scale, q, shift) <= kRoundsToZero<T> ? A(0) : gradient;
}

}  // namespace jpu::norm_relu
