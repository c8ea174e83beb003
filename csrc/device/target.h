// Which of the two compilers reads a kernel: nvcc for a GPU, or g++ for host execution.
//
// A kernel is one source. What the hardware gives is reached through the headers of this folder, whose
// functions have a body for each target; everything else in a kernel is plain C++.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define JPU_CUDA 1
#define JPU_DEVICE __device__ __forceinline__
#define JPU_HOST_DEVICE __host__ __device__ __forceinline__
// So many blocks must fit on a multiprocessor, which bounds the registers. Without a number ptxas aims for more
// blocks of its own accord, and spills.
#define JPU_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
// By value and never copied to local memory, however it is indexed.
#define JPU_PARAMS const __grid_constant__
#define JPU_UNROLL _Pragma("unroll")
#define JPU_UNROLL_BY(n) _Pragma(JPU_TEXT(unroll n))
#define JPU_TEXT(x) #x
#else
#define JPU_CUDA 0
// Inlined always: the site of an access or barrier, by which faults and counters tell them apart, is
// the address in the kernel that called the runtime.
#define JPU_DEVICE __attribute__((always_inline)) inline
#define JPU_HOST_DEVICE inline
#define JPU_KERNEL(threads, blocks) void
#define JPU_PARAMS const
#define JPU_UNROLL
#define JPU_UNROLL_BY(n)
#include "host/device_api.h"
#endif
