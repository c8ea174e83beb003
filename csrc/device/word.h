// Four bytes of shared or global memory as a thread holds them in a register: two elements of the half types, or one
// float32.
#pragma once

#include <cstddef>
#include <type_traits>

#include "device/memory.h"
#include "device/numeric.h"

namespace jpu {

constexpr size_t kWordBytes = 4;

// Elements of a word.
template <class T>
inline constexpr int kWordSize = static_cast<int>(kWordBytes / sizeof(T));

// The address is a multiple of 4 bytes.
template <class T>
JPU_DEVICE uint32_t read_word(const T* address) {
  static_assert(!std::is_same_v<T, double>, "which is longer");
#if JPU_CUDA
  return *reinterpret_cast<const uint32_t*>(address);
#else
  return *reinterpret_cast<const host::Word4*>(address);
#endif
}

// The address is a multiple of 4 bytes.
template <class T>
JPU_DEVICE void store_word(T* address, uint32_t word) {
  static_assert(!std::is_same_v<T, double>, "which is longer");
#if JPU_CUDA
  *reinterpret_cast<uint32_t*>(address) = word;
#else
  *reinterpret_cast<host::Word4*>(address) = word;
#endif
}

template <class T>
JPU_DEVICE void widen_word(uint32_t word, float (&result)[kWordSize<T>]) {
  static_assert(!std::is_same_v<T, double>, "which is longer");
  if constexpr (kWordSize<T> == 1) {
#if JPU_CUDA
    result[0] = __uint_as_float(word);
#else
    result[0] = __builtin_bit_cast(float, word);
#endif
  } else {
    result[0] = widen(T{static_cast<uint16_t>(word & 0xffff)});
    result[1] = widen(T{static_cast<uint16_t>(word >> 16)});
  }
}

// Each element is rounded to nearest, ties to even.
template <class T>
JPU_DEVICE uint32_t narrow_word(const float (&value)[kWordSize<T>]) {
  static_assert(!std::is_same_v<T, double>, "which is longer");
  if constexpr (kWordSize<T> == 1) {
#if JPU_CUDA
    return __float_as_uint(value[0]);
#else
    return __builtin_bit_cast(uint32_t, value[0]);
#endif
  } else {
    return narrow<T>(value[0]).bits | static_cast<uint32_t>(narrow<T>(value[1]).bits) << 16;
  }
}

}  // namespace jpu
