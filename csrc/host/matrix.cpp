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

typedef double Row __attribute__((vector_size(kColumns * sizeof(double))));

double value(MatrixType type, uint32_t word, int half) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * half));
  if (type == MatrixType::kFloat16) return float16_to_float(bits);
  if (type == MatrixType::kBfloat16) return bfloat16_to_float(bits);
  const uint32_t masked = word & kTf32;
  float result;
  std::memcpy(&result, &masked, sizeof result);
  return result;
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

}  // namespace

int matrix_multiply_adds(MatrixType type) { return kRows * kColumns * (type == MatrixType::kTf32 ? 8 : 16); }

void multiply_matrices(MatrixType type, MatrixOperands* const (&lanes)[kWarp]) {
  constexpr int kMostDepth = 16;
  const int in_word = type == MatrixType::kTf32 ? 1 : 2;
  const int depth = 8 * in_word;
  double a[kRows][kMostDepth];
  Row b[kMostDepth], sum[kRows];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane / 4, place = lane % 4;
    const MatrixOperands& own = *lanes[lane];
    for (int half = 0; half < in_word; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][(place + i / 2 * 4) * in_word + half] = value(type, own.a[i], half);
      }
      for (int i = 0; i < 2; ++i) b[(place + i * 4) * in_word + half][group] = value(type, own.b[i], half);
    }
    for (int i = 0; i < 4; ++i) sum[group + i / 2 * 8][place * 2 + i % 2] = static_cast<double>(own.sum[i]);
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < depth; ++k) sum[row] += a[row][k] * b[k];
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      lanes[lane]->sum[i] = truncate(sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
  }
}

}  // namespace jpu::host
