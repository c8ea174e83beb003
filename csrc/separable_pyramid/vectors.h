// Which tensors are accessed 16 bytes at a time.
#pragma once

#include "common/strides.h"
#include "device/memory.h"

namespace jpu::separable_pyramid {

// Whether an [N, C, H, W] tensor's channels can be.
template <class T>
bool channels_in_vectors(const void* data, const Strides& stride) {
  constexpr int V = Vector<T>::kSize;
  return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0 && stride.c == 1 && stride.n % V == 0 &&
         stride.h % V == 0 && stride.w % V == 0;
}

}  // namespace jpu::separable_pyramid
