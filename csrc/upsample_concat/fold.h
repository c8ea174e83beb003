// Norms with fixed statistics, folded into affine maps by blocks beside those that resize; and the adjoint.
#pragma once

#include "common/blocks.h"
#include "device/memory.h"
#include "upsample_concat/upsample_concat.h"

namespace jpu::upsample_concat {

JPU_DEVICE bool folds_a_norm(const Params& p) { return p.norms > 0 && block_index() >= p.norm[0].first_block; }

// What a thread of such a block has: one channel, of as many as there are.
struct NormChannel {
  int norm, channel;
};

JPU_DEVICE NormChannel norm_channel(const Params& p) {
  const int norm = entry_of_block(p.norm, p.norms, &Norm::first_block);
  return {norm, static_cast<int>(block_index() - p.norm[norm].first_block) * kThreads + thread_index()};
}

template <class T>
JPU_DEVICE Accumulate<T> load_norm(const Params& p, const void* values, int channel) {
  using A = Accumulate<T>;
  if (p.norms_in_sums) return load(static_cast<const A*>(values) + channel);
  return widen(load(static_cast<const T*>(values) + channel));
}

template <class T>
JPU_DEVICE void store_norm(const Params& p, void* values, int channel, Accumulate<T> value) {
  using A = Accumulate<T>;
  if (p.norms_in_sums) {
    store(static_cast<A*>(values) + channel, value);
  } else {
    store(static_cast<T*>(values) + channel, narrow<T>(value));
  }
}

template <class T>
JPU_DEVICE Accumulate<T> deviation(const Params& p, const Norm& norm, int channel) {
  return square_root(load_norm<T>(p, norm.var, channel) + static_cast<Accumulate<T>>(norm.eps));
}

template <class T>
JPU_DEVICE void fold_norm(const Params& p) {
  using A = Accumulate<T>;
  const auto [index, c] = norm_channel(p);
  const Norm& norm = p.norm[index];
  if (c >= norm.channels) return;
  const A weight = norm.weight == nullptr ? A(1) : load_norm<T>(p, norm.weight, c);
  const A bias = norm.bias == nullptr ? A(0) : load_norm<T>(p, norm.bias, c);
  const A scale = weight / deviation<T>(p, norm, c);
  store(static_cast<A*>(norm.scale) + c, scale);
  store(static_cast<A*>(norm.shift) + c, multiply_add(-load_norm<T>(p, norm.mean, c), scale, bias));
}

template <class T>
JPU_DEVICE void fold_norm_backward(const Params& p) {
  using A = Accumulate<T>;
  const auto [index, c] = norm_channel(p);
  const Norm& norm = p.norm[index];
  if (c >= norm.channels) return;
  const A scale = norm.scale == nullptr ? A(0) : load(static_cast<const A*>(norm.scale) + c);
  const A shift = norm.shift == nullptr ? A(0) : load(static_cast<const A*>(norm.shift) + c);
  if (norm.weight != nullptr) {
    const A centred = multiply_add(-load_norm<T>(p, norm.mean, c), shift, scale);
    store_norm<T>(p, norm.weight, c, centred / deviation<T>(p, norm, c));
  }
  if (norm.bias != nullptr) store_norm<T>(p, norm.bias, c, shift);
}

}  // namespace jpu::upsample_concat
