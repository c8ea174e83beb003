// What the headers of device/ call when a kernel is executed on the CPU. Kernels include nothing else
// of this folder.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/buffer.h"

namespace jpu::host {

// One 16-byte access, which a struct of four floats would not be.
typedef uint32_t Word16 __attribute__((vector_size(16), may_alias));
// Four bytes of elements of another type.
typedef uint32_t Word4 __attribute__((may_alias));

typedef float Float4 __attribute__((vector_size(16)));

int thread_index();
uint32_t block_index();
__attribute__((noinline)) void block_barrier();
// `dynamic_bytes`: what the launch must give for it. `type`: an address that stands for the type of what is kept there.
void* shared_memory(size_t bytes, int dynamic_bytes, const void* type);

float multiply_add(float a, float b, float c);
double multiply_add(double a, double b, double c);

float float16_to_float(uint16_t bits);
uint16_t float_to_float16(float x);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float x);

__attribute__((noinline)) void copy_async(void* shared, const void* global, int bytes, int source_bytes);
void commit_copies();
void wait_copies(int pending);

// A warp's instructions: every lane of a warp comes to the same call before any goes on.
enum class MatrixType : uint8_t { kFloat16, kBfloat16, kTf32 };
__attribute__((noinline)) Word16 load_matrices(const void* row);
__attribute__((noinline)) Float4 multiply_matrices(MatrixType type, Word16 a, uint32_t b0, uint32_t b1, Float4 sum);

// One launch: declare its memory, then execute it. One launch at a time; others wait.
class Launch {
 public:
  Launch(const char* kernel, uint32_t blocks, int threads, int shared_bytes);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  void declare(const Buffer& buffer);
  // Throws std::runtime_error that names kernel, block and thread at the first fault.
  void execute(void (*body)(const void*), const void* argument);

 private:
  struct State;
  State* state_;
};

}  // namespace jpu::host
