// The shapes of pipes.cuh, and what a block's sums and shared memory must be at the end. No CUDA in it.
#pragma once

#include <algorithm>
#include <vector>

#include "expected.h"

namespace hopper {

enum class Layout {
  kSingle,     // each block does all of its own
  kPair,       // two blocks have the same pixels and different outputs: each makes every other left operand, for both
  kMulticast,  // two blocks have the same outputs and different pixels: each brings half of the weights, for both
};

enum Active : uint32_t { kProducts = 1, kCopies = 2, kDepthwise = 4 };

// Waits, as a Failure names them.
enum Wait : uint32_t { kNone, kWeightsFull, kWeightsEmpty, kInputFull, kInputEmpty, kOperandFull, kOperandEmpty };

constexpr int kConsumers = 256;  // threads; two warpgroups

// ptxas compiles m64n256 only where a thread may have 154 registers when the kernel starts, whatever setmaxnreg gives
// it later: with 384 threads, which leave one warpgroup for the depthwise. With 512 the columns come in two halves of
// 128, and the left operand is read twice.
enum class Columns { k256, kTwice128 };

template <Layout kLayout, Columns kColumns>
struct Shape {
  static constexpr bool kWide = kColumns == Columns::k256;
  static constexpr int kProducers = kWide ? 128 : 256, kThreads = kConsumers + kProducers;
  // Of a thread, when it starts and in its role: what the producers give back is what the consumers can get.
  static constexpr int kStartRegisters = 65536 / kThreads / 8 * 8, kProducerRegisters = 88;
  static constexpr int kConsumerRegisters = kWide ? 208 : 168;
  static_assert(kConsumers * kConsumerRegisters + kProducers * kProducerRegisters <= kThreads * kStartRegisters);

  static constexpr bool kCluster = kLayout != Layout::kSingle;
  static constexpr bool kShared = kLayout == Layout::kPair;  // the left operands
  static constexpr bool kMulticast = kLayout == Layout::kMulticast;
  static constexpr int kBlocks = kCluster ? 2 : 1;
  static constexpr int kOperands = kShared ? 4 : 2, kWeights = 3, kInputs = kShared ? 2 : 3;  // stages

  static constexpr int kOperandBytes = kPixels * kRowBytes, kWeightBytes = kOutputs * kRowBytes;
  static constexpr int kTapBytes = (kTaps + 1) * kChannels * 4;
  static constexpr int kInputBytes = kBoxBytes + kTapBytes;
  // Offsets; operands are swizzled, so they are multiples of 1024.
  static constexpr int kWeightsAt = kOperands * kOperandBytes;
  static constexpr int kInputsAt = kWeightsAt + kWeights * kWeightBytes;
  static constexpr int kDataBytes = kInputsAt + kInputs * kInputBytes;
  static constexpr int kBarriers = 2 * (kOperands + kWeights + kInputs);
  static constexpr int kSharedBytes = 1024 + kDataBytes + 8 * kBarriers;  // 1024: to align the base
  static_assert(kInputBytes == 25 * 1024 && kSharedBytes <= 227 * 1024);
};

// --- what the host computes -----------------------------------------------------------------------------------------

// One image at stride 8, three levels of 512 channels; weights of four dilations of 512 outputs.
constexpr int kChannelsOfImage = 1536, kSide = 64, kAllOutputs = 4 * 512;
constexpr int kTilesAcross = kSide / kTileWidth, kTiles = kTilesAcross * (kSide / kTileHeight);
constexpr int kBlocksOfChannels = kChannelsOfImage / kChannels;
constexpr int kMostOperands = 4;
// More than twice the stages of every ring, once around the channels and some; few tiles and outputs, which the host
// has to compute.
constexpr int kCheckedSteps = kBlocksOfChannels + 5, kCheckedTiles = 4, kCheckedOutputs = 512;

// Of all tensors.
struct Data {
  std::vector<uint16_t> weight, pixel, operands;
  std::vector<float> taps;

  explicit Data(bool exact) {
    const auto filled = [exact](uint32_t tensor, int64_t size, int largest) {
      std::vector<uint16_t> values(static_cast<size_t>(size));
      for (uint32_t i = 0; i < values.size(); ++i) values[i] = to_bfloat16(number(tensor, i, exact, largest));
      return values;
    };
    weight = filled(1, int64_t{kAllOutputs} * kChannelsOfImage, 2);
    pixel = filled(2, int64_t{kSide} * kSide * kChannelsOfImage, 2);
    operands = filled(3, int64_t{kMostOperands} * kPixels * kChannels, 2);
    taps.resize(size_t{kBlocksOfChannels} * (kTaps + 1) * kChannels);
    for (uint32_t i = 0; i < taps.size(); ++i) taps[i] = number(4, i, exact, 1);
  }
};

// What a block of a launch has to make, step by step.
template <class S>
class Expected {
 public:
  Expected(const Data& data, uint32_t active, int block) : data_(data), active_(active) {
    const int group = block / S::kBlocks;
    tile = (S::kShared ? group : block) % kCheckedTiles;
    output = (S::kShared ? block : group) % (kCheckedOutputs / kOutputs) * kOutputs;
    rank_ = block % S::kBlocks;
  }

  int tile, output;

  // Which 64 channels a stage of a ring holds at a step, or is left with from the beginning.
  int weights_at(int step) const { return active_ & kCopies ? step % kBlocksOfChannels : step % S::kWeights; }
  int input_at(int step) const {
    return active_ & kCopies ? step % kBlocksOfChannels : step / (S::kShared ? 2 : 1) % S::kInputs;
  }

  std::vector<uint16_t> box(int channels) const {  // [10][18][64]
    std::vector<uint16_t> result(kBoxBytes / 2);
    const int x = tile % kTilesAcross * kTileWidth - 1, y = tile / kTilesAcross * kTileHeight - 1;
    for (int i = 0; i < kBoxWidth * kBoxHeight; ++i) {
      const int row = y + i / kBoxWidth, column = x + i % kBoxWidth;
      if (row < 0 || row >= kSide || column < 0 || column >= kSide) continue;
      const uint16_t* from = data_.pixel.data() + (row * kSide + column) * kChannelsOfImage + channels * kChannels;
      std::copy_n(from, kChannels, result.begin() + i * kChannels);
    }
    return result;
  }
  const float* taps(int channels) const { return data_.taps.data() + channels * (kTaps + 1) * kChannels; }
  const uint16_t* weights(int channels) const {
    return data_.weight.data() + int64_t{output} * kChannelsOfImage + channels * kChannels;
  }
  std::vector<uint16_t> operand(int step) const {  // [128][64]
    if (active_ & kDepthwise) return expected_depthwise(box(input_at(step)).data(), taps(input_at(step)));
    const auto from = data_.operands.begin() + step % S::kOperands * kPixels * kChannels;
    return {from, from + kPixels * kChannels};
  }
  std::vector<float> sums() const {  // [128][256]
    std::vector<float> result(kPixels * kOutputs);
    for (int step = 0; step < kCheckedSteps; ++step) {
      add_product(result, operand(step).data(), weights(weights_at(step)), kChannelsOfImage);
    }
    return result;
  }
  // The shared memory at the end.
  std::vector<uint8_t> memory() const {
    std::vector<uint8_t> result(S::kDataBytes);
    const auto put = [&result](int at, uint16_t value) { std::memcpy(result.data() + at, &value, 2); };
    for (int stage = 0; stage < S::kOperands; ++stage) {
      const int step = last(stage, S::kOperands, 0, 1);
      const std::vector<uint16_t> rows = operand(active_ & kDepthwise ? step : stage);
      for (int i = 0; i < kPixels * kChannels; ++i) put(stage * S::kOperandBytes + swizzled(2 * i), rows[i]);
    }
    for (int stage = 0; stage < S::kWeights; ++stage) {
      const uint16_t* rows = weights(weights_at(last(stage, S::kWeights, 0, 1)));
      for (int i = 0; i < kOutputs * kChannels; ++i) {
        const uint16_t value = rows[i / kChannels * kChannelsOfImage + i % kChannels];
        put(S::kWeightsAt + stage * S::kWeightBytes + swizzled(2 * i), value);
      }
    }
    for (int stage = 0; stage < S::kInputs; ++stage) {
      const int step = S::kShared ? last(stage, S::kInputs, rank_, 2) : last(stage, S::kInputs, 0, 1);
      uint8_t* to = result.data() + S::kInputsAt + stage * S::kInputBytes;
      std::memcpy(to, box(input_at(step)).data(), kBoxBytes);
      std::memcpy(to + kBoxBytes, taps(input_at(step)), S::kTapBytes);
    }
    return result;
  }

 private:
  // The last of the steps first, first + every, … that uses a stage of so many.
  static int last(int stage, int stages, int first, int every) {
    const int count = (kCheckedSteps - first + every - 1) / every;
    return first + every * (count - 1 - (count - 1 - stage + stages) % stages);
  }
  const Data& data_;
  uint32_t active_;
  int rank_;
};

}  // namespace hopper
