// Global and shared memory: elements, 16-byte vectors, the shared block of a kernel.
#pragma once

#include "device/numeric.h"
#include "device/target.h"

namespace jpu {

// The widest access that the hardware makes per thread.
constexpr int kVectorBytes = 16;

template <class T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  T at[kSize];
};

// Of memory that this launch does not write.
template <class T>
JPU_DEVICE T load(const T* address) {
#if JPU_CUDA
  if constexpr (sizeof(T) == 2) {
    return T{__ldg(&address->bits)};
  } else {
    return __ldg(address);
  }
#else
  return *address;
#endif
}

// Of any memory; the address is a multiple of 16 bytes.
template <class T>
JPU_DEVICE Vector<T> read_vector(const T* address) {
  Vector<T> result;
#if JPU_CUDA
  *reinterpret_cast<uint4*>(&result) = *reinterpret_cast<const uint4*>(address);
#else
  const host::Word16 word = *reinterpret_cast<const host::Word16*>(address);
  std::memcpy(&result, &word, sizeof word);
#endif
  return result;
}

// Of memory that this launch does not write; the address is a multiple of 16 bytes.
template <class T>
JPU_DEVICE Vector<T> load_vector(const T* address) {
#if JPU_CUDA
  Vector<T> result;
  *reinterpret_cast<uint4*>(&result) = __ldg(reinterpret_cast<const uint4*>(address));
  return result;
#else
  return read_vector(address);
#endif
}

// The same where `exists`, or else zeros; the address is then of no account.
template <class T>
JPU_DEVICE Vector<T> load_vector_if(bool exists, const T* address) {
  Vector<T> result;
#if JPU_CUDA
  // Zeros of whole words: of elements each would be chosen by itself.
  uint4 words = make_uint4(0, 0, 0, 0);
  if (exists) words = __ldg(reinterpret_cast<const uint4*>(address));
  *reinterpret_cast<uint4*>(&result) = words;
#else
  host::Word16 word{};
  if (exists) word = *reinterpret_cast<const host::Word16*>(address);
  std::memcpy(&result, &word, sizeof word);
#endif
  return result;
}

template <class T>
JPU_DEVICE void store(T* address, T value) {
  *address = value;
}

// The address is a multiple of 16 bytes.
template <class T>
JPU_DEVICE void store_vector(T* address, const Vector<T>& value) {
#if JPU_CUDA
  *reinterpret_cast<uint4*>(address) = *reinterpret_cast<const uint4*>(&value);
#else
  host::Word16 word;
  std::memcpy(&word, &value, sizeof word);
  *reinterpret_cast<host::Word16*>(address) = word;
#endif
}

#if !JPU_CUDA
template <class S>
inline constexpr char kTypeOf = 0;
#endif

// What a block may have without an opt-in.
constexpr int kStaticBytes = 48 * 1024;

// The dynamic shared memory that a launch has to give a kernel whose shared memory is an S.
template <class S>
inline constexpr int kDynamicBytes = sizeof(S) > kStaticBytes ? static_cast<int>(sizeof(S)) : 0;

// The shared memory of this block as an S, which is not initialised. One call a kernel.
template <class S>
JPU_DEVICE S& shared_memory() {
  constexpr int kAlignment = 128;
  static_assert(alignof(S) <= kAlignment, "which dynamic shared memory is aligned to");
#if JPU_CUDA
  if constexpr (kDynamicBytes<S> != 0) {
    extern __shared__ __align__(kAlignment) unsigned char dynamic_storage[];
    return *reinterpret_cast<S*>(dynamic_storage);
  } else {
    __shared__ alignas(kVectorBytes < alignof(S) ? alignof(S) : kVectorBytes) unsigned char storage[sizeof(S)];
    return *reinterpret_cast<S*>(storage);
  }
#else
  return *static_cast<S*>(host::shared_memory(sizeof(S), kDynamicBytes<S>, &kTypeOf<S>));
#endif
}

}  // namespace jpu
