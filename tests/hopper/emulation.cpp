// emulation CASE…: executes blocks of the kernels of benchmarks/hopper/cuda with the functions of the device.cuh beside
// this file, and holds them to what the program on a GPU is held to. Cases are pipes/LAYOUT/COLUMNS/ACTIVE, the last a
// sum of 1 (products), 2 (copies) and 4 (depthwise), and tiles/ENGINE/STRIDE/HALO.
#include <cstdio>
#include <sstream>
#include <string>

#include "copies.cuh"
#include "pipes.cuh"

namespace hopper {
namespace {

int compared(const std::string& name, bool same) {
  std::printf("%s: %s\n", name.c_str(), same ? "right" : "WRONG");
  return same ? 0 : 1;
}

template <class S>
int run_pipes(const std::string& name, uint32_t active) {
  constexpr int kFirst = 2;  // blocks 2 and 3, whose tile is not the first one
  const Data data(true);
  PipesParams params{};
  params.weights = {data.weight.data(),
                    {kChannelsOfImage, kAllOutputs},
                    {kChannels, S::kMulticast ? kOutputs / 2 : kOutputs},
                    {1, 1},
                    true};
  params.pixels = {data.pixel.data(),
                   {kChannelsOfImage, kSide, kSide, 1},
                   {kChannels, kBoxWidth, kBoxHeight, 1},
                   {1, 1, 1, 1},
                   false};
  params.weight = data.weight.data();
  params.pixel = data.pixel.data();
  params.taps = data.taps.data();
  params.operands = data.operands.data();
  std::vector<float> sums((kFirst + 2) * kPixels * kOutputs, -1.0f);
  std::vector<uint8_t> memory((kFirst + 2) * S::kDataBytes);
  std::vector<int64_t> clocks(kFirst + 2);
  params.sums = sums.data();
  params.data = memory.data();
  params.clocks = clocks.data();
  params.active = active;
  params.steps = kCheckedSteps;
  params.channels = kChannelsOfImage;
  params.height = params.width = kSide;
  params.tiles_across = kTilesAcross;
  params.tiles = kCheckedTiles;
  params.outputs = kCheckedOutputs;
  execute(kFirst, S::kBlocks, kFirst + 2, S::kThreads, [&params] { pipes<S>(params); });

  bool same = true;
  for (int block = kFirst; block < kFirst + S::kBlocks; ++block) {
    const Expected<S> expected(data, active, block);
    if (active & kProducts) {
      const std::vector<float> right = expected.sums();
      same &= std::equal(right.begin(), right.end(), sums.begin() + block * kPixels * kOutputs);
    }
    const std::vector<uint8_t> right = expected.memory();
    same &= std::equal(right.begin(), right.end(), memory.begin() + block * S::kDataBytes);
  }
  return compared(name, same);
}

template <Layout kLayout>
int run_layout(const std::string& name, const std::string& columns, uint32_t active) {
  return columns == "256" ? run_pipes<Shape<kLayout, Columns::k256>>(name, active)
                          : run_pipes<Shape<kLayout, Columns::kTwice128>>(name, active);
}

int run_tiles(const std::string& name, bool bulk, int stride, bool halo) {
  const Extent extent = halo ? Extent{1, 16, 32, 192} : Extent{2, 80, 144, 128};
  std::vector<uint16_t> tensor(size_t{1} * extent.images * extent.height * extent.width * extent.channels);
  for (size_t i = 0; i < tensor.size(); ++i) {
    const int c = static_cast<int>(i % extent.channels), pixel = static_cast<int>(i / extent.channels);
    const int y = pixel / extent.width % extent.height, n = pixel / extent.width / extent.height;
    tensor[i] = marked(n, y, pixel % extent.width, c);
  }
  TilesParams params{};
  params.map = {tensor.data(),
                {extent.channels, extent.width, extent.height, extent.images},
                {kChannels, kBoxWidth * stride, kBoxHeight * stride, 1},
                {1, stride, stride, 1},
                true};
  params.tensor = tensor.data();
  params.extent = extent;
  params.walk = walk_of(extent, halo, stride);
  params.steps = 2 * kTileStages + 3;
  constexpr int kBlock = 1, kGrid = 3;
  std::vector<uint8_t> memory((kBlock + 1) * kTilesDataBytes);
  std::vector<int64_t> clocks(kBlock + 1);
  params.data = memory.data();
  params.clocks = clocks.data();
  execute(kBlock, 1, kGrid, bulk ? kBulkThreads : kGatherThreads, [&] {
    if (bulk) {
      tiles_bulk(params);
    } else {
      tiles_gather(params);
    }
  });
  bool same = true;
  for (int step = params.steps - kTileStages; step < params.steps; ++step) {
    const Start start = start_of(params.walk, position_of(params.walk, kBlock, kGrid, step));
    const int channel = step % params.walk.blocks * kChannels;
    const auto right = expected_tile(extent, start, stride, channel, true);
    const uint8_t* tile = memory.data() + kBlock * kTilesDataBytes + step % kTileStages * kStageBytes;
    same &= std::memcmp(tile, right.data(), kBoxBytes) == 0;
    for (int i = kBoxBytes; i < kStageBytes; ++i) same &= tile[i] == (kUntouched & 0xff);
  }
  return compared(name, same);
}

int run(const std::string& name) {
  std::istringstream parts(name);
  std::string kind, first, second, third;
  std::getline(parts, kind, '/');
  std::getline(parts, first, '/');
  std::getline(parts, second, '/');
  std::getline(parts, third, '/');
  if (kind == "tiles") return run_tiles(name, first == "bulk", std::stoi(second), third == "1");
  const uint32_t active = static_cast<uint32_t>(std::stoi(third));
  if (first == "single") return run_layout<Layout::kSingle>(name, second, active);
  if (first == "pair") return run_layout<Layout::kPair>(name, second, active);
  return run_layout<Layout::kMulticast>(name, second, active);
}

}  // namespace
}  // namespace hopper

int main(int count, char** arguments) {
  int wrong = 0;
  for (int i = 1; i < count; ++i) wrong += hopper::run(arguments[i]);
  return wrong == 0 ? 0 : 1;
}
