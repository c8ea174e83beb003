// What a kernel may touch, as host execution holds it to.
#pragma once

#include <cstdint>

namespace jpu {

enum class Access : uint8_t {
  kRead,     // every element holds a value, and none is written
  kWrite,    // every element is written; none is read before
  kScratch,  // may be written, and read after that
  kUpdate,   // every element holds a value, and every one is written; it may be read before, by the block that writes it
};

// A strided tensor of up to four dimensions; the gaps between its elements do not belong to it.
struct Buffer {
  const char* name;
  const void* data;
  int64_t element_bytes;
  int64_t size[4];
  int64_t stride[4];  // in elements
  Access access;
  bool argument = false;  // of the launch, which the hardware has in a constant bank: counters leave it out
};

}  // namespace jpu
