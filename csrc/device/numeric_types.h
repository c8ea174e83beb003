// The element types that the language lacks.
#pragma once

#include <cstdint>

namespace jpu {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

}  // namespace jpu
