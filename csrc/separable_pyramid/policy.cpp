#include "separable_pyramid/policy.h"

#include <algorithm>
#include <stdexcept>

#include "separable_pyramid/matrix_config.h"

namespace jpu::separable_pyramid {

namespace {

constexpr int kOldestArch = 80;  // that has mma.sync of bfloat16 and TF32, and cp.async

// What every GPU since then gives a block, in bytes of shared memory.
constexpr int kSharedBytes = 99 * 1024;
static_assert(kMmaSharedBytes <= kSharedBytes && kTwoPassSharedBytes <= kSharedBytes, "or the device would decide too");

// Each block of the single launch makes h anew for its outputs, which hides behind its product as long as other blocks
// of the tile are few; the two passes make it once, and move it through the L2 cache instead.
constexpr int64_t kMostShares = 3;

// Why no tensor core takes the problem; empty if they do.
std::string refusal(const Device& device, const Problem& problem) {
  if (device.arch == 0) return "a device without tensor cores was asked for";
  if (device.arch < kOldestArch) {
    return "expected compute capability 8.0 or newer for tensor cores, got " + std::to_string(device.arch / 10) + "." +
           std::to_string(device.arch % 10);
  }
  if (problem.type == ElementType::kFloat64) return "float64 keeps its precision in plain multiply-adds only";
  if (problem.type == ElementType::kFloat32 && !problem.allow_tf32) {
    return "float32 keeps its precision in plain multiply-adds only, and torch.backends.cudnn does not allow TF32";
  }
  return {};
}

// How many times as many multiply-adds with sums of float32 the tensor cores do a second, at least, as all others. By
// the peaks of NVIDIA's data sheets: A100, H100 and B200; GeForce, of which the workstations' GPUs have twice as many.
int64_t speed_up(const Device& device, const Problem& problem) {
  const bool half = problem.type != ElementType::kFloat32;
  if (device.arch == 80 || device.arch / 10 == 9 || device.arch / 10 == 10) return half ? 14 : 7;
  return half ? 2 : 1;
}

Choice automatic(const Device& device, const Problem& problem) {
  const int64_t shares = shares_of(problem.outputs);
  // Both policies fill their blocks up, which differ in outputs alone.
  const int64_t products = shares * kMatrixColumns, others = (problem.outputs + kColumns - 1) / kColumns * kColumns;
  if (products > speed_up(device, problem) * others) {
    return {Policy::kFma, "tensor cores would work on " + std::to_string(products) + " outputs for " +
                              std::to_string(problem.outputs) + ", plain multiply-adds on " + std::to_string(others) +
                              ", and may be no more than " + std::to_string(speed_up(device, problem)) +
                              " times as fast on this device"};
  }
  if (shares > kMostShares) {
    return {Policy::kTwoPass, std::to_string(problem.outputs) + " outputs are " + std::to_string(shares) +
                                  " blocks' work, each of which would make the operand anew in a single launch"};
  }
  return {Policy::kMma, "one launch of tensor cores, which makes the operand while it multiplies"};
}

}  // namespace

Choice choose(const std::string& requested, const Device& device, const Problem& problem) {
  if (requested != "auto" && requested != "fma" && requested != "mma" && requested != "two-pass") {
    throw std::invalid_argument("policy: expected auto, fma, mma or two-pass, got '" + requested + "'");
  }
  if (requested == "fma") return {Policy::kFma, "asked for by name"};
  if (const std::string why_not = refusal(device, problem); !why_not.empty()) return {Policy::kFma, why_not};
  if (requested == "auto") return automatic(device, problem);
  return {requested == "mma" ? Policy::kMma : Policy::kTwoPass, "asked for by name"};
}

int64_t tiles_of_a_wave(const Device& device, int64_t shares) {
  return std::max<int64_t>(device.multiprocessors / shares, 1);
}

int64_t tiles_at_a_time(const Device& device, int64_t cache_bytes, int64_t tile_bytes, int64_t shares) {
  const int64_t tiles = std::max<int64_t>(cache_bytes / tile_bytes, 1);
  const int64_t wave = tiles_of_a_wave(device, shares);
  return tiles < wave ? tiles : tiles / wave * wave;
}

#if !defined(USE_CUDA)
Device typical_device(int arch) {
  constexpr Device kDevices[] = {
      // Of NVIDIA's data sheets and of the CUDA programming guide's table of compute capabilities.
      {120, 170, int64_t{96} << 20},  // GeForce RTX 5090
      {90, 132, int64_t{50} << 20},  // H100 SXM
      {89, 128, int64_t{72} << 20},   // GeForce RTX 4090
      {86, 82, int64_t{6} << 20},     // GeForce RTX 3090
      {80, 108, int64_t{40} << 20},  // A100
  };
  for (const Device& device : kDevices) {
    if (arch >= device.arch) return device;
  }
  return {arch, 1, 0};
}
#endif

}  // namespace jpu::separable_pyramid
