// Where the elements of an [N, C, H, W] tensor lie.
#pragma once

#include "device/target.h"

namespace jpu {

struct Strides {  // in elements
  int64_t n, c, h, w;
};

JPU_DEVICE int64_t offset_of(const Strides& stride, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * stride.n + c * stride.c + h * stride.h + w * stride.w;
}

template <class T>
JPU_DEVICE T* at(void* base, const Strides& stride, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(base) + offset_of(stride, n, c, h, w);
}
template <class T>
JPU_DEVICE const T* at(const void* base, const Strides& stride, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<const T*>(base) + offset_of(stride, n, c, h, w);
}

}  // namespace jpu
