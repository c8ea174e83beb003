// Kernels by name, and how they are started.
#pragma once

#include <span>

#include "device/launch.h"
#include "faulty.h"

namespace jpu::faulty {

struct Entry {
  const char* name;
  void (*start)(const char* name, const Memory&);
};

template <void (*Kernel)(Memory), int Threads = kThreads, int SharedBytes = 0, Access Scratch = Access::kScratch>
void start(const char* name, const Memory& m) {
  launch(name, Kernel, {m.rows, Threads, SharedBytes}, m, nullptr, [&](auto declare) {
    const auto matrix = [&](const char* what, const float* data, int64_t columns, int64_t stride, Access access) {
      declare(Buffer{what, data, sizeof(float), {1, 1, m.rows, columns}, {1, 1, stride, 1}, access});
    };
    if (m.input) matrix("input", m.input, m.columns, m.input_stride, Access::kRead);
    matrix("output", m.output, m.output_columns, m.output_stride, Access::kWrite);
    if (m.scratch) matrix("scratch", m.scratch, m.columns, m.scratch_stride, Scratch);
  });
}

std::span<const Entry> matrix_kernels();  // those of matrix.cu

}  // namespace jpu::faulty
