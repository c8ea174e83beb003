// Every wrapper of csrc/device, each in a small kernel of its own: what a GPU makes of data that host execution
// gets too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jpu::probe {

constexpr int kThreads = 128;

// An item of input becomes an item of output; the number of items is a multiple of kThreads.
struct Case {
  const char* name;  // of the wrapper, with its template's arguments
  int64_t input_bytes, output_bytes;  // of an item
  void (*run)(const void* input, void* output, int64_t items);
};

std::vector<Case> cases();
std::vector<Case> matrix_cases();  // those of them that are in matrix.cu

// Memory that kernels reach, at first full of bytes that no case makes throughout.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  void write(const void* from);
  // Waits for the kernels first; throws std::runtime_error if one failed.
  void read(void* to) const;

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// The GPU's name, or "host".
std::string target();

}  // namespace jpu::probe
