// Runs the cases of pipes.cuh: holds each to what the host computes, then times it.
#include "pipes.cuh"

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "host.h"

namespace hopper {
namespace {

constexpr int kTimedSteps = 80 * kBlocksOfChannels;

struct Tensors {
  DeviceArray<uint16_t> weight{int64_t{kAllOutputs} * kChannelsOfImage};
  DeviceArray<uint16_t> pixel{int64_t{kSide} * kSide * kChannelsOfImage};
  DeviceArray<uint16_t> operands{int64_t{kMostOperands} * kPixels * kChannels};
  DeviceArray<float> taps{int64_t{kBlocksOfChannels} * (kTaps + 1) * kChannels};

  void write(const Data& data) {
    weight.write(data.weight);
    pixel.write(data.pixel);
    operands.write(data.operands);
    taps.write(data.taps);
  }
};

std::string name_of(uint32_t active) {
  std::string text;
  const auto add = [&](uint32_t flag, const char* name) {
    if (!(active & flag)) return;
    if (!text.empty()) text += '+';
    text += name;
  };
  add(kProducts, "products");
  add(kCopies, "copies");
  add(kDepthwise, "depthwise");
  return text;
}

// By active, tile, first output and rank; the same whichever way the columns are cut.
struct Right {
  std::vector<float> sums;
  std::vector<uint8_t> memory;
};
using AllRight = std::map<std::tuple<uint32_t, int, int, int>, Right>;

template <class S>
class Runner {
 public:
  Runner(const Session& session, const Data& exact, const Data& timed, Tensors& tensors, AllRight& right,
         const char* layout)
      : session_(session), exact_(exact), timed_(timed), tensors_(tensors), right_(right), layout_(layout) {
    check(cudaFuncSetAttribute(pipes<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
          "cudaFuncSetAttribute");
    blocks_ = session.blocks_at_once() / S::kBlocks * S::kBlocks;
    if (S::kCluster) {
      int clusters = 0;
      set_config(blocks_);
      check(cudaOccupancyMaxActiveClusters(&clusters, pipes<S>, &config_), "cudaOccupancyMaxActiveClusters");
      if (clusters < 1) throw Error("clusters: expected room for one of two blocks, got none");
      blocks_ = std::min(blocks_, clusters * S::kBlocks);
    }
    set_config(blocks_);
    const uint32_t height = S::kMulticast ? kOutputs / 2 : kOutputs;
    const MapShape weights{{kChannelsOfImage, kAllOutputs}, {kChannels, height}, {1, 1}, true};
    const MapShape pixels{
        {kChannelsOfImage, kSide, kSide, 1}, {kChannels, kBoxWidth, kBoxHeight, 1}, {1, 1, 1, 1}, false};
    params_.weights = make_map(tensors.weight.data(), weights);
    params_.pixels = make_map(tensors.pixel.data(), pixels);
    params_.weight = tensors.weight.data();
    params_.pixel = tensors.pixel.data();
    params_.taps = tensors.taps.data();
    params_.operands = tensors.operands.data();
    params_.watch = session.watch();
    params_.channels = kChannelsOfImage;
    params_.height = params_.width = kSide;
    params_.tiles_across = kTilesAcross;
  }

  bool run(uint32_t active) {
    params_.active = active;
    params_.reader_fence = false;
    std::string wrong = check_once();
    if (!wrong.empty() && S::kShared && active & kDepthwise) {
      // Whether a second fence, where a peer's writes are read, would make it right.
      params_.reader_fence = true;
      const std::string without = wrong;
      wrong = check_once();
      if (wrong.empty()) {
        Line("note").add("text", "right only with a fence where operands are read").add("without", without).print();
      }
    }
    Line line("pipes");
    line.add("layout", layout_).add("columns", S::kWide ? "256" : "2x128").add("active", name_of(active));
    line.add("reader_fence", params_.reader_fence).add("wrong", wrong).add("blocks", blocks_);
    if (wrong.empty() && !session_.check_only()) {
      tensors_.write(timed_);
      DeviceArray<int64_t> clocks(blocks_);
      params_.clocks = clocks.data();
      params_.sums = nullptr;
      params_.data = nullptr;
      params_.steps = kTimedSteps;
      params_.tiles = kTiles;
      params_.outputs = kAllOutputs;
      const Session::Samples samples = session_.time([this] { launch(); }, clocks);
      line.add("steps", kTimedSteps).add("cycles", samples.cycles).add("milliseconds", samples.milliseconds);
    }
    line.print();
    return wrong.empty();
  }

 private:
  void set_config(int blocks) {
    config_ = {};
    config_.gridDim = static_cast<unsigned>(blocks);
    config_.blockDim = S::kThreads;
    config_.dynamicSmemBytes = S::kSharedBytes;
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim = {S::kBlocks, 1, 1};
    config_.attrs = &attribute_;
    config_.numAttrs = S::kCluster ? 1 : 0;
  }

  void launch() { check(cudaLaunchKernelEx(&config_, pipes<S>, params_), "launch of pipes"); }

  // Empty, or what is wrong. Every block of the grid is held to the host's numbers.
  std::string check_once() {
    tensors_.write(exact_);
    DeviceArray<int64_t> clocks(blocks_);
    DeviceArray<float> sums(int64_t{blocks_} * kPixels * kOutputs);
    DeviceArray<uint8_t> data(int64_t{blocks_} * S::kDataBytes);
    check(cudaMemset(sums.data(), 0xff, sizeof(float) * blocks_ * kPixels * kOutputs), "cudaMemset");
    params_.clocks = clocks.data();
    params_.sums = sums.data();
    params_.data = data.data();
    params_.steps = kCheckedSteps;
    params_.tiles = kCheckedTiles;
    params_.outputs = kCheckedOutputs;
    launch();
    session_.finish("checked launch of pipes");
    const std::vector<float> got_sums = sums.read();
    const std::vector<uint8_t> got_data = data.read();
    for (int block = 0; block < blocks_; ++block) {
      const Expected<S> expected(exact_, params_.active, block);
      Right& right = right_[{params_.active, expected.tile, expected.output, block % S::kBlocks}];
      if (right.memory.empty()) {
        right.memory = expected.memory();
        if (params_.active & kProducts) right.sums = expected.sums();
      }
      const std::string where = "block " + std::to_string(block) + ", ";
      const float* of_block = got_sums.data() + int64_t{block} * kPixels * kOutputs;
      for (size_t i = 0; i < right.sums.size(); ++i) {
        if (of_block[i] == right.sums[i]) continue;
        return where + "sum of pixel " + std::to_string(i / kOutputs) + " and output " + std::to_string(i % kOutputs) +
               ": expected " + std::to_string(right.sums[i]) + ", got " + std::to_string(of_block[i]);
      }
      const uint8_t* bytes = got_data.data() + int64_t{block} * S::kDataBytes;
      const auto differing = std::mismatch(right.memory.begin(), right.memory.end(), bytes);
      if (differing.first == right.memory.end()) continue;
      const int64_t at = differing.first - right.memory.begin();
      const char* part = at < S::kWeightsAt ? "operands" : at < S::kInputsAt ? "weights" : "inputs";
      return where + "byte " + std::to_string(at) + " of shared memory, of " + part + ": expected " +
             std::to_string(*differing.first) + ", got " + std::to_string(*differing.second);
    }
    return "";
  }

  const Session& session_;
  const Data &exact_, &timed_;
  Tensors& tensors_;
  AllRight& right_;
  const char* layout_;
  int blocks_ = 0;
  PipesParams params_{};
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

template <Layout kLayout>
bool run_layout(const Session& session, const char* name, const std::vector<uint32_t>& actives) {
  const Data exact(true), timed(false);
  Tensors tensors;
  AllRight known;
  Runner<Shape<kLayout, Columns::k256>> wide(session, exact, timed, tensors, known, name);
  Runner<Shape<kLayout, Columns::kTwice128>> twice(session, exact, timed, tensors, known, name);
  bool right = true;
  for (const uint32_t active : actives) {
    for (const bool first : {true, false}) {
      const std::string what = std::string(name) + (first ? " 256 " : " 2x128 ") + name_of(active);
      if (session.begins(what)) right &= first ? wide.run(active) : twice.run(active);
    }
  }
  return right;
}

const std::vector<uint32_t> kEvery = {kProducts,
                                      kCopies,
                                      kDepthwise,
                                      kProducts | kCopies,
                                      kProducts | kDepthwise,
                                      kCopies | kDepthwise,
                                      kProducts | kCopies | kDepthwise};

}  // namespace

bool run_single(const Session& session) { return run_layout<Layout::kSingle>(session, "single", kEvery); }
bool run_pair(const Session& session) { return run_layout<Layout::kPair>(session, "pair", kEvery); }
bool run_multicast(const Session& session) {
  return run_layout<Layout::kMulticast>(session, "multicast",
                                        {kCopies, kProducts | kCopies, kProducts | kCopies | kDepthwise});
}

}  // namespace hopper
