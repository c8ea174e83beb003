// Norms with fixed statistics as affine maps, and what they are made of:
//   scale = weight / √(var + eps)     shift = bias − mean · scale
#pragma once

#include "device/memory.h"

namespace jpu {

// A channel's entry of values whose type is that of sums, or else that of the levels.
template <class T>
JPU_DEVICE Accumulate<T> load_norm(const void* values, bool in_sums, int channel) {
  using A = Accumulate<T>;
  if (in_sums) return load(static_cast<const A*>(values) + channel);
  return widen(load(static_cast<const T*>(values) + channel));
}

// Norm: has pointers weight, bias (null for 1 and 0), mean and var [channels], and eps.
template <class T, class Norm>
JPU_DEVICE Accumulate<T> deviation(const Norm& norm, bool in_sums, int channel) {
  return square_root(load_norm<T>(norm.var, in_sums, channel) + static_cast<Accumulate<T>>(norm.eps));
}

template <class A>
struct Affine {
  A scale, shift;
};

template <class T, class Norm>
JPU_DEVICE Affine<Accumulate<T>> affine_of(const Norm& norm, bool in_sums, int channel) {
  using A = Accumulate<T>;
  const A weight = norm.weight == nullptr ? A(1) : load_norm<T>(norm.weight, in_sums, channel);
  const A bias = norm.bias == nullptr ? A(0) : load_norm<T>(norm.bias, in_sums, channel);
  const A scale = weight / deviation<T>(norm, in_sums, channel);
  return {scale, multiply_add(-load_norm<T>(norm.mean, in_sums, channel), scale, bias)};
}

}  // namespace jpu
