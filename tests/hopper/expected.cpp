// Prints what expected.h says, a line each of a name and numbers: where the swizzle puts 16-byte units, descriptors of
// operands, tiles of every d-th pixel and their order, a depthwise and its product.
#include "expected.h"

#include <cstdio>
#include <cstdlib>

namespace {

using namespace hopper;

template <class T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s", name);
  for (const T value : values) std::printf(" %.9g", static_cast<double>(value));
  std::printf("\n");
}

void print_walk(const Walk& walk, int stride) {
  std::vector<int> starts = {stride};
  for (int position = 0; position < positions(walk); ++position) {
    const Start start = start_of(walk, position);
    starts.insert(starts.end(), {start.n, start.y, start.x});
  }
  print("walk", starts);
}

}  // namespace

int main() {
  std::vector<int> places;
  for (int row = 0; row < 64; ++row) {
    for (int unit = 0; unit < 8; ++unit) places.push_back(swizzled(row * kRowBytes + 16 * unit));
  }
  print("swizzle", places);

  for (const uint32_t address : {0x400u, 0x12420u, 0x38c00u}) {
    std::printf("descriptor %u %llu\n", address, static_cast<unsigned long long>(describe_operand(address)));
  }

  const Extent tensor{2, 24, 40, 128};
  for (const int stride : {1, 2, 4, 8}) {
    for (const bool swizzle : {false, true}) {
      const Start start{1, 3 - stride, 5 - 2 * stride};
      std::vector<int> line = {stride, swizzle};
      const auto tile = expected_tile(tensor, start, stride, 64, swizzle);
      line.insert(line.end(), tile.begin(), tile.end());
      print("tile", line);
    }
    print_walk(walk_of({1, 80, 144, 64}, false, stride), stride);
  }

  std::vector<uint16_t> box(kBoxBytes / 2), weights(kOutputs * kChannels);
  std::vector<float> taps((kTaps + 1) * kChannels), values, sum(kPixels * kOutputs);
  for (uint32_t i = 0; i < box.size(); ++i) box[i] = to_bfloat16(number(1, i, true, 2));
  for (uint32_t i = 0; i < weights.size(); ++i) weights[i] = to_bfloat16(number(2, i, true, 2));
  for (uint32_t i = 0; i < taps.size(); ++i) taps[i] = number(3, i, true, 1);
  const auto floats = [](const std::vector<uint16_t>& from) {
    std::vector<float> to;
    for (const uint16_t x : from) to.push_back(to_float(x));
    return to;
  };
  const auto operand = expected_depthwise(box.data(), taps.data());
  add_product(sum, operand.data(), weights.data(), kChannels);
  print("box", floats(box));
  print("taps", taps);
  print("weights", floats(weights));
  print("operand", floats(operand));
  print("sum", sum);
  return 0;
}
