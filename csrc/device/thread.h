// Where a thread stands, and barriers. Grids and blocks have one dimension; kernels decode the rest.
#pragma once

#include "device/target.h"

namespace jpu {

JPU_DEVICE int thread_index() {
#if JPU_CUDA
  return static_cast<int>(threadIdx.x);
#else
  return host::thread_index();
#endif
}

constexpr int kWarpSize = 32;

JPU_DEVICE int warp_index() { return thread_index() / kWarpSize; }

// Within its warp.
JPU_DEVICE int lane_index() { return thread_index() % kWarpSize; }

JPU_DEVICE uint32_t block_index() {
#if JPU_CUDA
  return blockIdx.x;
#else
  return host::block_index();
#endif
}

// Brings the threads of a warp together again that took different ways before, as what a warp does together needs. It
// orders no memory. Host execution, whose threads never run together, checks at such an instruction that all reach it.
JPU_DEVICE void converge_warp() {
#if JPU_CUDA
  __syncwarp();
#endif
}

// Every thread of the block arrives before any goes on, and sees what the others wrote.
JPU_DEVICE void block_barrier() {
#if JPU_CUDA
  __syncthreads();
#else
  host::block_barrier();
#endif
}

}  // namespace jpu
