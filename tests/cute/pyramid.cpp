// Prints how csrc/separable_pyramid places operands, beside the same in CuTe's algebra. A line is a name and numbers,
// of which the last two must be equal.
#include <cstdio>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/layout.hpp>
#include <cute/swizzle.hpp>

#include "separable_pyramid/matrix_operand.h"

namespace {

using namespace jpu;
using namespace jpu::separable_pyramid;

// Rows of 64 bytes. Units by the pair of rows, which the hardware has for such rows too; then the rows of a pair by
// every higher bit of the row.
int swizzled(int offset) {
  offset = cute::Swizzle<2, 4, 3>{}(offset);
  offset = cute::Swizzle<1, 6, 2>{}(offset);
  offset = cute::Swizzle<1, 6, 3>{}(offset);
  offset = cute::Swizzle<1, 6, 4>{}(offset);
  offset = cute::Swizzle<1, 6, 5>{}(offset);
  offset = cute::Swizzle<1, 6, 6>{}(offset);
  return cute::Swizzle<1, 6, 7>{}(offset);
}

// Which row of the right operand the x-th result of a thread's vector is the product with, by the layout of a product's
// results: value 2 h + e of thread (t, g) is row g + 8 h and column 2 t + e of a tile of 8 columns.
template <class T, class Operation>
void print_columns(const char* name) {
  constexpr int V = Vector<T>::kSize;
  const auto results = typename cute::MMA_Traits<Operation>::CLayout{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < kWarpSide / (4 * V); ++v) {
      for (int x = 0; x < V; ++x) {
        const int tile = v * (V / 2) + x / 2, column = static_cast<int>(results(lane, x % 2)) / 16;
        std::printf("%s %d %d\n", name, row_of_output<T>(v * 4 * V + lane % 4 * V + x), tile * 8 + column);
      }
    }
  }
}

}  // namespace

int main() {
  for (int row = 0; row < kMatrixColumns; ++row) {
    for (int unit = 0; unit < kUnits; ++unit) {
      std::printf("place %d %d\n", unit_place(row, unit) * kVectorBytes, swizzled(row * 64 + unit * kVectorBytes));
    }
  }
  print_columns<float16, cute::SM80_16x8x16_F32F16F16F32_TN>("float16");
  print_columns<bfloat16, cute::SM80_16x8x16_F32BF16BF16F32_TN>("bfloat16");
  print_columns<float, cute::SM80_16x8x8_F32TF32TF32F32_TN>("float");
}
