// Arithmetic of sizes.
#pragma once

#include "device/target.h"

namespace jpu {

JPU_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

// ⌈a / b⌉ of positive numbers.
JPU_HOST_DEVICE constexpr int ceil_divide(int a, int b) { return a / b + (a % b != 0); }

}  // namespace jpu
