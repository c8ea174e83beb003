// Prints what CuTe has of wgmma's operands and results. A line is a name and numbers.
#include <cstdint>
#include <cstdio>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/layout.hpp>

int main() {
  using namespace cute;
  // Where the 16-byte units of rows of 128 bytes lie; of bytes, since the swizzle is one of addresses.
  const auto rows = tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<uint8_t>{}, Shape<_64, _128>{});
  for (int row = 0; row < 64; ++row) {
    std::printf("operand");
    for (int unit = 0; unit < 8; ++unit) std::printf(" %d", static_cast<int>(rows(row, 16 * unit)));
    std::printf("\n");
  }
  // Row + 64 · column, by thread and value of m64n256.
  const typename SM90::GMMA::CLayout_64x256 results;
  for (int thread = 0; thread < 128; ++thread) {
    std::printf("results");
    for (int value = 0; value < 128; ++value) std::printf(" %d", static_cast<int>(results(thread, value)));
    std::printf("\n");
  }
  // Of operands at some addresses.
  for (const unsigned address : {0x400u, 0x12420u, 0x38c00u}) {
    GmmaDescriptor descriptor;
    descriptor.bitfield.start_address_ = static_cast<uint16_t>(address >> 4);
    descriptor.bitfield.leading_byte_offset_ = 1;
    descriptor.bitfield.stride_byte_offset_ = 1024 >> 4;
    descriptor.bitfield.base_offset_ = 0;
    descriptor.bitfield.layout_type_ = static_cast<uint8_t>(SM90::GMMA::LayoutType::B128);
    std::printf("descriptor %u %llu\n", address, static_cast<unsigned long long>(static_cast<uint64_t>(descriptor)));
  }
  return 0;
}
