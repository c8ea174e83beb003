// Starts a kernel: on a stream of the current device, or on the CPU.
#pragma once

#include <stdexcept>
#include <string>

#include "device/buffer.h"
#include "device/target.h"

namespace jpu {

struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes = 0;  // kDynamicBytes<S> of the kernel's shared memory
};

constexpr int kMaxThreads = 1024;     // a block's, on every GPU
constexpr int kMaxParamBytes = 4096;  // a kernel's, on every GPU
constexpr int kMaxSharedBytes = 227 * 1024;  // a block's, on the GPU that has most

// Args:
//   declare: is called with a function that takes Buffers, and names all memory that the kernel may
//     touch beside its parameters. Only host execution calls it.
template <class Params, class Declare>
void launch(const char* name, void (*kernel)(Params), Grid grid, const Params& params, void* stream,
            Declare&& declare) {
  static_assert(sizeof(Params) <= kMaxParamBytes, "split the launch, or put tables into global memory");
  if (grid.threads < 1 || grid.threads > kMaxThreads) {
    throw std::runtime_error(std::string(name) + ": expected 1 to " + std::to_string(kMaxThreads) +
                             " threads a block, got " + std::to_string(grid.threads));
  }
  if (grid.shared_bytes < 0 || grid.shared_bytes > kMaxSharedBytes) {
    throw std::runtime_error(std::string(name) + ": expected 0 to " + std::to_string(kMaxSharedBytes) +
                             " bytes of dynamic shared memory, got " + std::to_string(grid.shared_bytes));
  }
  if (grid.blocks == 0) return;
  if (grid.blocks > INT32_MAX) {
    throw std::runtime_error(std::string(name) + ": expected at most 2147483647 blocks, got " +
                             std::to_string(grid.blocks));
  }
#if JPU_CUDA
  (void)declare;
  if (grid.shared_bytes > 0) {
    // Each time, since it holds for the current device alone.
    constexpr cudaFuncAttribute kMost = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, kMost, grid.shared_bytes); error != cudaSuccess) {
      (void)cudaGetLastError();  // or the next launch would report it
      throw std::runtime_error(std::string(name) + ": expected a GPU that gives a block " +
                               std::to_string(grid.shared_bytes) +
                               " bytes of shared memory, got: " + cudaGetErrorString(error));
    }
  }
  kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, static_cast<size_t>(grid.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(params);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": launch failed: " + cudaGetErrorString(error));
  }
#else
  (void)stream;
  host::Launch run(name, static_cast<uint32_t>(grid.blocks), grid.threads, grid.shared_bytes);
  declare([&run](const Buffer& buffer) { run.declare(buffer); });
  struct Call {
    void (*kernel)(Params);
    const Params* params;
    static void make(const void* self) {
      const Call& call = *static_cast<const Call*>(self);
      call.kernel(*call.params);
    }
  };
  const Call call{kernel, &params};
  run.declare({"parameters", &params, sizeof(Params), {1, 1, 1, 1}, {0, 0, 0, 0}, Access::kRead, true});
  run.declare({"call", &call, sizeof(Call), {1, 1, 1, 1}, {0, 0, 0, 0}, Access::kRead, true});
  run.execute(&Call::make, &call);
#endif
}

}  // namespace jpu
