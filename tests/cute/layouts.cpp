// Prints how CuTe has it that a warp's lanes hold matrices, and where its swizzles put 16-byte units. A line is a name
// and numbers.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/layout.hpp>
#include <cute/swizzle_layout.hpp>

namespace {

using namespace cute;

// (thread, value) to an index in a matrix of `Rows` by columns.
template <int Rows, class Layout>
void print_operand(const char* dtype, char operand, Layout layout) {
  for (int thread = 0; thread < size<0>(layout); ++thread) {
    for (int value = 0; value < size<1>(layout); ++value) {
      const int index = static_cast<int>(layout(thread, value));
      std::printf("%s.%c %d %d %d %d\n", dtype, operand, thread, value, index % Rows, index / Rows);
    }
  }
}

template <class Operation>
void print_product(const char* dtype) {
  using Traits = MMA_Traits<Operation>;
  using Shape = typename Traits::Shape_MNK;
  static_assert(size<0>(Shape{}) == 16 && size<1>(Shape{}) == 8);
  print_operand<16>(dtype, 'A', typename Traits::ALayout{});
  print_operand<8>(dtype, 'B', typename Traits::BLayout{});
  print_operand<16>(dtype, 'C', typename Traits::CLayout{});
}

void print_load() {
  using Traits = Copy_Traits<SM75_U32x4_LDSM_N>;
  // Both are of bits: (thread, bit of its row) and (thread, bit of its registers) to a number that tells them all.
  const typename Traits::SrcLayout source;
  const typename Traits::DstLayout destination;
  for (int thread = 0; thread < 32; ++thread) {
    for (int value = 0; value < 4; ++value) {
      const int bit = static_cast<int>(destination(thread, 32 * value));
      for (int giver = 0; giver < 32; ++giver) {
        for (int word = 0; word < 4; ++word) {
          if (static_cast<int>(source(giver, 32 * word)) == bit) {
            std::printf("ldmatrix %d %d %d %d\n", thread, value, giver, word);
          }
        }
      }
    }
  }
}

template <int Bits, int Shift, int RowBytes>
void print_swizzle() {
  const auto rows = make_layout(make_shape(Int<64>{}, Int<RowBytes>{}), make_stride(Int<RowBytes>{}, Int<1>{}));
  const auto swizzled = composition(Swizzle<Bits, 4, Shift>{}, rows);
  std::printf("swizzle %d %d %d", Bits, Shift, RowBytes);
  for (int row = 0; row < 64; ++row) {
    for (int unit = 0; unit < RowBytes / 16; ++unit) std::printf(" %d", static_cast<int>(swizzled(row, 16 * unit)));
  }
  std::printf("\n");
}

template <int Bits, int Shift>
void print_swizzles() {
  print_swizzle<Bits, Shift, 32>();
  print_swizzle<Bits, Shift, 64>();
  print_swizzle<Bits, Shift, 128>();
  print_swizzle<Bits, Shift, 256>();
}

}  // namespace

int main() {
  print_product<SM80_16x8x16_F32F16F16F32_TN>("float16");
  print_product<SM80_16x8x16_F32BF16BF16F32_TN>("bfloat16");
  print_product<SM80_16x8x8_F32TF32TF32F32_TN>("float");
  print_load();
  print_swizzles<0, 3>();
  print_swizzles<1, 1>();
  print_swizzles<1, 2>();
  print_swizzles<1, 3>();
  print_swizzles<1, 4>();
  print_swizzles<2, 2>();
  print_swizzles<2, 3>();
  print_swizzles<2, 4>();
  print_swizzles<3, 3>();
  print_swizzles<3, 4>();
}
