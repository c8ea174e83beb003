// Norms with fixed statistics, folded into affine maps by blocks beside those that resize; and the adjoint.
#pragma once

#include "common/blocks.h"
#include "common/norm.h"
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
JPU_DEVICE void store_norm(const Params& p, void* values, int channel, Accumulate<T> value) {
  using A = Accumulate<T>;
  if (p.norms_in_sums) {
    store(static_cast<A*>(values) + channel, value);
  } else {
    store(static_cast<T*>(values) + channel, narrow<T>(value));
  }
}

template <class T>
JPU_DEVICE void fold_norm(const Params& p) {
  using A = Accumulate<T>;
  const auto [index, c] = norm_channel(p);
  const Norm& norm = p.norm[index];
  if (c >= norm.channels) return;
  const Affine<A> affine = affine_of<T>(norm, p.norms_in_sums, c);
  store(static_cast<A*>(norm.scale) + c, affine.scale);
  store(static_cast<A*>(norm.shift) + c, affine.shift);
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
    const A centred = multiply_add(-load_norm<T>(norm.mean, p.norms_in_sums, c), shift, scale);
    store_norm<T>(p, norm.weight, c, centred / deviation<T>(norm, p.norms_in_sums, c));
  }
  if (norm.bias != nullptr) store_norm<T>(p, norm.bias, c, shift);
}

}  // namespace jpu::upsample_concat
