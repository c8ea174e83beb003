// Runs the cases of copies.cuh: holds the tiles to what the host computes, then times them.
#include "copies.cuh"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>

#include "host.h"

namespace hopper {
namespace {

constexpr int kStrides[] = {1, 2, 4, 8};  // the paper's dilations; the copy engine knows no larger ones

struct Memory {
  const char* name;
  Extent extent;
  bool halo;  // tiles overlap and reach beyond the image, as those of a dilated convolution do
};

// Of 80 × 144 pixels every residue class modulo 1, 2, 4 and 8 is made of whole boxes of 10 × 18: each stride reads each
// byte once. With the halo it is the design's image of 64 × 64 pixels, three levels of 512 channels.
constexpr Memory kMemories[] = {
    {"L2", {1, 80, 144, 512}, false},
    {"DRAM", {64, 80, 144, 512}, false},
    {"L2, halo", {1, 64, 64, 1536}, true},
};
constexpr int64_t kTimedBytes = int64_t{4} << 30;  // of a launch, nearly
constexpr int kCheckedSteps = 2 * kTileStages + 3;

int64_t elements(const Extent& e) { return int64_t{e.images} * e.height * e.width * e.channels; }

// Empty, or what is wrong with the tiles that a block was left with.
std::string compare(const TilesParams& params, int block, int blocks, const uint8_t* data) {
  for (int step = params.steps - kTileStages; step < params.steps; ++step) {
    const Start start = start_of(params.walk, position_of(params.walk, block, blocks, step));
    const int channel = step % params.walk.blocks * kChannels;
    const std::vector<uint16_t> right = expected_tile(params.extent, start, params.walk.stride, channel, true);
    const uint8_t* tile = data + step % kTileStages * kStageBytes;
    if (std::memcmp(tile, right.data(), kBoxBytes) == 0) {
      // Nothing after it was written.
      const auto untouched = [](uint8_t x) { return x == (kUntouched & 0xff); };
      if (std::all_of(tile + kBoxBytes, tile + kStageBytes, untouched)) continue;
      return "block " + std::to_string(block) + ", step " + std::to_string(step) + ": bytes after the tile are written";
    }
    int wrong = 0, first = -1;
    uint16_t got = 0;
    for (int i = 0; i < kBoxBytes / 2; ++i) {
      uint16_t x;
      std::memcpy(&x, tile + 2 * i, 2);
      if (x == right[i]) continue;
      if (first < 0) {
        first = i;
        got = x;
      }
      ++wrong;
    }
    return "block " + std::to_string(block) + ", step " + std::to_string(step) + ", tile of image " +
           std::to_string(start.n) + " from row " + std::to_string(start.y) + ", column " + std::to_string(start.x) +
           ", channel " + std::to_string(channel) + ": " + std::to_string(wrong) + " of " +
           std::to_string(kBoxBytes / 2) + " elements differ; the first, at byte " + std::to_string(2 * first) +
           ": expected " + std::to_string(right[first]) + ", got " + std::to_string(got);
  }
  return "";
}

bool run_case(const Session& session, bool bulk, const Memory& memory, int stride, DeviceArray<uint16_t>& tensor) {
  const auto kernel = bulk ? tiles_bulk : tiles_gather;
  const int threads = bulk ? kBulkThreads : kGatherThreads, blocks = session.blocks_at_once();
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTilesSharedBytes),
        "cudaFuncSetAttribute");
  Line line("tiles");
  line.add("engine", bulk ? "bulk" : "cp.async").add("memory", memory.name).add("stride", stride).add("blocks", blocks);

  TilesParams params{};
  params.tensor = tensor.data();
  params.watch = session.watch();
  params.extent = memory.extent;
  params.walk = walk_of(memory.extent, memory.halo, stride);
  const Extent& e = memory.extent;
  const auto u64 = [](int x) { return static_cast<uint64_t>(x); };
  const uint32_t step = static_cast<uint32_t>(stride);
  if (bulk) {
    try {
      params.map = make_map(tensor.data(), {{u64(e.channels), u64(e.width), u64(e.height), u64(e.images)},
                                            {kChannels, kBoxWidth * step, kBoxHeight * step, 1},
                                            {1, step, step, 1},
                                            true});
    } catch (const Error& error) {  // an answer too: the engine does not do it
      line.add("wrong", error.what()).print();
      return false;
    }
  }
  DeviceArray<int64_t> clocks(blocks);
  DeviceArray<uint8_t> data(int64_t{blocks} * kTilesDataBytes);
  params.clocks = clocks.data();
  params.data = data.data();
  params.steps = kCheckedSteps;
  const auto launch = [&] {
    kernel<<<static_cast<unsigned>(blocks), threads, kTilesSharedBytes>>>(params);
    check(cudaGetLastError(), "launch of tiles");
  };
  launch();
  session.finish("checked launch of tiles");
  const std::vector<uint8_t> got = data.read();
  std::string wrong;
  for (int block = 0; block < blocks && wrong.empty(); ++block) {
    wrong = compare(params, block, blocks, got.data() + int64_t{block} * kTilesDataBytes);
  }
  line.add("wrong", wrong);
  if (wrong.empty() && !session.check_only()) {
    params.data = nullptr;
    const int64_t rounds = kTimedBytes / (int64_t{kBoxBytes} * blocks * params.walk.blocks);
    params.steps = static_cast<int>(std::max<int64_t>(rounds, 1)) * params.walk.blocks;
    const Session::Samples samples = session.time(launch, clocks);
    line.add("steps", params.steps).add("cycles", samples.cycles).add("milliseconds", samples.milliseconds);
  }
  line.print();
  return wrong.empty();
}

bool run_engine(const Session& session, bool bulk) {
  std::vector<std::unique_ptr<DeviceArray<uint16_t>>> tensors;
  for (const Memory& memory : kMemories) {
    tensors.push_back(std::make_unique<DeviceArray<uint16_t>>(elements(memory.extent)));
    mark<<<1024, 256>>>(tensors.back()->data(), memory.extent);
    session.finish("launch of mark");
  }
  bool right = true;
  for (const int stride : kStrides) {
    for (size_t i = 0; i < std::size(kMemories); ++i) {
      const std::string what = std::string(kMemories[i].name) + ", stride " + std::to_string(stride);
      if (session.begins(what)) right &= run_case(session, bulk, kMemories[i], stride, *tensors[i]);
    }
  }
  return right;
}

}  // namespace

bool run_bulk(const Session& session) { return run_engine(session, true); }
bool run_gather(const Session& session) { return run_engine(session, false); }

}  // namespace hopper
