// The four dtypes, and the arithmetic that must be the same on both targets.
#pragma once

#include <cmath>
#include <cstring>

#include "device/numeric_types.h"
#include "device/target.h"

#if JPU_CUDA
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace jpu {

// What sums are kept in: float64 for float64, float32 for all else.
template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;

JPU_DEVICE double widen(double x) { return x; }
JPU_DEVICE float widen(float x) { return x; }

JPU_DEVICE float widen(float16 x) {
#if JPU_CUDA
  return __half2float(__ushort_as_half(x.bits));
#else
  return host::float16_to_float(x.bits);
#endif
}

JPU_DEVICE float widen(bfloat16 x) {
#if JPU_CUDA
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return host::bfloat16_to_float(x.bits);
#endif
}

// Rounds to nearest, ties to even.
template <class T>
JPU_DEVICE T narrow(Accumulate<T> x);

template <>
JPU_DEVICE double narrow<double>(double x) {
  return x;
}
template <>
JPU_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
JPU_DEVICE float16 narrow<float16>(float x) {
#if JPU_CUDA
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {host::float_to_float16(x)};
#endif
}
template <>
JPU_DEVICE bfloat16 narrow<bfloat16>(float x) {
#if JPU_CUDA
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {host::float_to_bfloat16(x)};
#endif
}

// a·b + c, rounded once.
JPU_DEVICE float multiply_add(float a, float b, float c) {
#if JPU_CUDA
  return __fmaf_rn(a, b, c);
#else
  return host::multiply_add(a, b, c);
#endif
}
JPU_DEVICE double multiply_add(double a, double b, double c) {
#if JPU_CUDA
  return __fma_rn(a, b, c);
#else
  return host::multiply_add(a, b, c);
#endif
}

// Rounded to nearest.
JPU_DEVICE float square_root(float x) {
#if JPU_CUDA
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}
JPU_DEVICE double square_root(double x) {
#if JPU_CUDA
  return __dsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

}  // namespace jpu
