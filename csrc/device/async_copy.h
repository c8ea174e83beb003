// Asynchronous copies from global to shared memory (cp.async, compute capability 8.0 and newer).
#pragma once

#include "device/target.h"

namespace jpu {

// Copies the first `source_bytes` of `Bytes` and fills the rest with zeros; both addresses are multiples
// of Bytes. What is copied may be read after wait_copies and, by other threads, a barrier after that.
template <int Bytes>
JPU_DEVICE void copy_async(void* shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "what cp.async takes");
#if JPU_CUDA
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
#else
  host::copy_async(shared, global, Bytes, source_bytes);
#endif
}

// Closes the group of copies that this thread issued since the last call.
JPU_DEVICE void commit_copies() {
#if JPU_CUDA
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host::commit_copies();
#endif
}

// Waits until at most the `Pending` newest of this thread's groups are unfinished.
template <int Pending>
JPU_DEVICE void wait_copies() {
#if JPU_CUDA
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  host::wait_copies(Pending);
#endif
}

}  // namespace jpu
