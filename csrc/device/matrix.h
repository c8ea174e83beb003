// Products of small matrices by the tensor cores, and the loads that feed them (compute capability 8.0 and newer).
//
// What a warp does together: its 32 threads reach the same call, or the behaviour is undefined. None of it orders
// memory between them; that takes a block_barrier.
#pragma once

#include <type_traits>

#include "device/numeric_types.h"
#include "device/target.h"

namespace jpu {

// A product is 16 × 8, summed over so many elements: 32 bytes of a row of A.
template <class T>
inline constexpr int kMatrixDepth = 32 / static_cast<int>(sizeof(T));

// Four matrices of 8 rows of 16 bytes. Lane 8 i + r gives the address of row r of matrix i, in shared memory and a
// multiple of 16; result[i] is bytes 4 (lane % 4) to 4 (lane % 4) + 3 of row lane / 4 of matrix i.
JPU_DEVICE void load_matrices(uint32_t (&result)[4], const void* row) {
#if JPU_CUDA
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
#else
  const host::Word16 word = host::load_matrices(row);
  for (int i = 0; i < 4; ++i) result[i] = word[i];
#endif
}

// sum += A·B, where A is 16 × kMatrixDepth<T> by rows, B is kMatrixDepth<T> × 8 by columns. With g = lane / 4 and
// t = lane % 4, a register of A or B holds the 4 bytes at 4 t of
//   a[0] row g of A, a[1] row g + 8, a[2] row g past its first 16 bytes, a[3] row g + 8 past its first 16 bytes;
//   b0 column g of B, b1 column g past its first 16 bytes,
// and sum is row g, columns 2 t and 2 t + 1, then row g + 8 of the same columns. So load_matrices gives both from
// tiles whose lines are contiguous in the summed dimension.
//
// Products are exact. Tensor cores align them to the largest and drop what lies below, so sums are truncated, not
// rounded to nearest. Of float the low 13 bits are dropped: round_tf32 rounds them away.
template <class T>
JPU_DEVICE void multiply_matrices(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(!std::is_same_v<T, double>, "sums would have to be float64 too");
#if JPU_CUDA
#define JPU_MMA(shape, type)                                                              \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                    \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"     \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, float16>) {
    JPU_MMA("m16n8k16", "f16");
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    JPU_MMA("m16n8k16", "bf16");
  } else {
    JPU_MMA("m16n8k8", "tf32");
  }
#undef JPU_MMA
#else
  constexpr host::MatrixType kType = std::is_same_v<T, float16>    ? host::MatrixType::kFloat16
                                     : std::is_same_v<T, bfloat16> ? host::MatrixType::kBfloat16
                                                                   : host::MatrixType::kTf32;
  const host::Word16 rows = {a[0], a[1], a[2], a[3]};
  const host::Float4 before = {sum[0], sum[1], sum[2], sum[3]};
  const host::Float4 after = host::multiply_matrices(kType, rows, b0, b1, before);
  for (int i = 0; i < 4; ++i) sum[i] = after[i];
#endif
}

// The bits of a float32, rounded to TF32's 10 bits of fraction: to nearest, ties away from zero, which cvt.rna.tf32 does
// too. The low 13 bits are zero. What rounds to 2^128 becomes infinity, subnormal numbers are rounded to multiples of
// 2^-136, and NaNs, whose payload might be cut off, become one.
JPU_DEVICE uint32_t round_tf32(uint32_t bits) {
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffe000u : (bits + 0x1000u) & 0xffffe000u;
}

JPU_DEVICE float round_tf32(float x) {
#if JPU_CUDA
  return __uint_as_float(round_tf32(__float_as_uint(x)));
#else
  return __builtin_bit_cast(float, round_tf32(__builtin_bit_cast(uint32_t, x)));
#endif
}

}  // namespace jpu
