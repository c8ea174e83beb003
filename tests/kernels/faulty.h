// Kernels with one deliberate fault each, and their healthy twins: what tests of host execution run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jpu::faulty {

constexpr int kThreads = 64;

// Matrices of float32, rows of which may lie apart; a block works on one row.
struct Memory {
  const float* input;  // [rows, columns], only read
  float* output;       // [rows, output_columns], all of it written
  float* scratch;      // [rows, columns], or null
  int64_t rows, columns, output_columns;
  int64_t input_stride, output_stride, scratch_stride;  // of rows, in elements
  int option;                                           // what the kernel makes of it
};

std::vector<std::string> names();
void run(const std::string& name, const Memory& memory);

// Defined where accesses are not watched.
void visit(uint32_t block, int thread);  // notes who came by
float peek(const float* address);        // what memory holds

}  // namespace jpu::faulty
