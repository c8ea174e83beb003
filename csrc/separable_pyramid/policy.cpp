#include "separable_pyramid/policy.h"

#include <algorithm>
#include <stdexcept>

#include "separable_pyramid/matrix_config.h"

namespace jpu::separable_pyramid {

namespace {

constexpr int kOldestArch = 80;  // that has mma.sync of bfloat16 and TF32, and cp.async

// Of a product's work that is on padding, beyond which plain multiply-adds win: tensor cores do some eight to sixteen
// times as many a cycle.
constexpr int64_t kMostPadding = 8;

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

// Multiply-adds of the tensor cores to one that is wanted.
bool mostly_padding(const Problem& problem) {
  const int64_t shares = shares_of(problem.outputs);
  const int64_t done = shares * kMatrixColumns * problem.padded_channels;
  return done > kMostPadding * problem.outputs * problem.channels;
}

std::string bytes_of(int bytes) { return std::to_string(bytes) + " bytes of shared memory a block"; }

Choice automatic(const Device& device, const Problem& problem) {
  const int64_t shares = shares_of(problem.outputs);
  // Tiny widths: most of a tile would be padding.
  if (mostly_padding(problem)) {
    return {Policy::kFma, "tensor cores would do more than " + std::to_string(kMostPadding) +
                              " times the work, on padding: " + std::to_string(problem.outputs) + " outputs of " +
                              std::to_string(kMatrixColumns) + ", " + std::to_string(problem.channels) +
                              " channels of " + std::to_string(problem.padded_channels)};
  }
  // Both want more shared memory than some GPU might have.
  if (device.shared_bytes < kTwoPassSharedBytes && device.shared_bytes < kMmaSharedBytes) {
    return {Policy::kFma, "tensor cores would take " + bytes_of(std::min(kTwoPassSharedBytes, kMmaSharedBytes)) +
                              ", and the device has " + std::to_string(device.shared_bytes)};
  }
  if (device.shared_bytes < kMmaSharedBytes) {
    return {Policy::kTwoPass, "the single launch would take " + bytes_of(kMmaSharedBytes) + ", and the device has " +
                                  std::to_string(device.shared_bytes)};
  }
  if (shares > kMostShares && device.shared_bytes >= kTwoPassSharedBytes) {
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
  const Policy wanted = requested == "mma" ? Policy::kMma : Policy::kTwoPass;
  const int bytes = wanted == Policy::kMma ? kMmaSharedBytes : kTwoPassSharedBytes;
  if (device.shared_bytes >= bytes) return {wanted, "asked for by name"};
  Choice other = automatic(device, problem);
  other.reason = requested + " was asked for, but takes " + bytes_of(bytes) + ": " + other.reason;
  return other;
}

int64_t tiles_of_a_wave(const Device& device, int64_t shares) {
  return std::max<int64_t>(device.multiprocessors / shares, 1);
}

int64_t tiles_at_a_time(const Device& device, int64_t cache_bytes, int64_t tile_bytes, int64_t shares) {
  const int64_t tiles = std::max<int64_t>(cache_bytes / tile_bytes, 1);
  const int64_t wave = tiles_of_a_wave(device, shares);
  return tiles < wave ? tiles : tiles / wave * wave;
}

Device typical_device(int arch) {
  constexpr Device kDevices[] = {
      // Of NVIDIA's data sheets and of the CUDA programming guide's table of compute capabilities.
      {120, 170, int64_t{96} << 20, 99 * 1024},  // GeForce RTX 5090
      {90, 132, int64_t{50} << 20, 227 * 1024},  // H100 SXM
      {89, 128, int64_t{72} << 20, 99 * 1024},   // GeForce RTX 4090
      {86, 82, int64_t{6} << 20, 99 * 1024},     // GeForce RTX 3090
      {80, 108, int64_t{40} << 20, 163 * 1024},  // A100
  };
  for (const Device& device : kDevices) {
    if (arch >= device.arch) return device;
  }
  return {arch, 1, 0, 48 * 1024};
}

}  // namespace jpu::separable_pyramid
