// What tensor cores compute from the registers of a warp.
#pragma once

#include "host/device_api.h"

namespace jpu::host {

constexpr int kWarp = 32;

// What a lane brings to the instruction; sum is what it takes along too.
struct MatrixOperands {
  Word16 a;
  uint32_t b[2];
  Float4 sum;
};

// Which rows, columns and depths a lane's registers hold is said in device/matrix.h.
void multiply_matrices(MatrixType type, MatrixOperands* const (&lanes)[kWarp]);
int matrix_multiply_adds(MatrixType type);

}  // namespace jpu::host
