// A model of the tensor cores' arithmetic: products are exact, a sum of them and of what was there before is taken in
// float64 and truncated to float32. The hardware truncates more: it aligns the terms to the largest of them, with a
// few bits more than float32 has, and may take the depth in several steps. What lies beyond float32 becomes infinity.
#include "host/matrix.h"

#include <cmath>
#include <cstring>

namespace jpu::host {

namespace {

constexpr int kRows = 16, kColumns = 8;
constexpr uint32_t kTf32 = 0xffffe000u;  // what counts of a float32
constexpr uint32_t kNan = 0x7fffffffu;   // the one that tensor cores make

// As wide as any x86-64 has it.
typedef double Pair __attribute__((vector_size(16), may_alias));

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <MatrixType kType>
double value(uint32_t word, int half) {
  const uint32_t bits = word >> (16 * half) & 0xffffu;
  if constexpr (kType == MatrixType::kTf32) return float_of(word & kTf32);
  if constexpr (kType == MatrixType::kBfloat16) return float_of(bits << 16);
  // As if it were a float32 of a smaller exponent; of infinities and NaNs the exponent is put right.
  const float wide = float_of((bits & 0x7fffu) << 13) * 0x1p112f;
  const float magnitude = (bits & 0x7c00u) == 0x7c00u ? float_of(0x7f800000u | (bits & 1023) << 13) : wide;
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

float truncate(double x) {
  float result = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &result, sizeof bits);
  if (std::isnan(x)) {
    bits = kNan;
  } else if (std::fabs(static_cast<double>(result)) > std::fabs(x) && std::fabs(x) < 0x1p128) {
    --bits;  // rounded away from zero
  }
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <MatrixType kType>
void multiply(MatrixOperands* const (&lanes)[kWarp]) {
  constexpr int kInWord = kType == MatrixType::kTf32 ? 1 : 2, kDepth = 8 * kInWord;
  double a[kRows][kDepth];
  alignas(Pair) double b[kDepth][kColumns], sum[kRows][kColumns];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane / 4, place = lane % 4;
    const MatrixOperands& own = *lanes[lane];
#pragma GCC unroll 2
    for (int half = 0; half < kInWord; ++half) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][(place + i / 2 * 4) * kInWord + half] = value<kType>(own.a[i], half);
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) b[(place + i * 4) * kInWord + half][group] = value<kType>(own.b[i], half);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[group + i / 2 * 8][place * 2 + i % 2] = static_cast<double>(own.sum[i]);
  }
  for (int row = 0; row < kRows; ++row) {
    // Unrolled, or what is summed would lie in memory.
    Pair* const own = reinterpret_cast<Pair*>(sum[row]);
    Pair total[kColumns / 2];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns / 2; ++j) total[j] = own[j];
    for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 4
      for (int j = 0; j < kColumns / 2; ++j) total[j] += a[row][k] * reinterpret_cast<const Pair*>(b[k])[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < kColumns / 2; ++j) own[j] = total[j];
  }
  for (int lane = 0; lane < kWarp; ++lane) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      lanes[lane]->sum[i] = truncate(sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
  }
}

}  // namespace

int matrix_multiply_adds(MatrixType type) { return kRows * kColumns * (type == MatrixType::kTf32 ? 8 : 16); }

void multiply_matrices(MatrixType type, MatrixOperands* const (&lanes)[kWarp]) {
  if (type == MatrixType::kFloat16) return multiply<MatrixType::kFloat16>(lanes);
  if (type == MatrixType::kBfloat16) return multiply<MatrixType::kBfloat16>(lanes);
  multiply<MatrixType::kTf32>(lanes);
}

}  // namespace jpu::host
