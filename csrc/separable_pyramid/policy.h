// Which of the kernels serves a call: a pure function of device, dtype and shape, tested as such.
#pragma once

#include <cstdint>
#include <string>

#include "device/numeric_types.h"

namespace jpu::separable_pyramid {

struct Device {
  int arch;  // compute capability, 80 for 8.0; 0 for one without tensor cores
  int multiprocessors;
  int64_t cache_bytes;  // L2
};

enum class ElementType { kFloat64, kFloat32, kFloat16, kBfloat16 };

template <class T>
inline constexpr ElementType kElementType = ElementType::kFloat64;
template <>
inline constexpr ElementType kElementType<float> = ElementType::kFloat32;
template <>
inline constexpr ElementType kElementType<float16> = ElementType::kFloat16;
template <>
inline constexpr ElementType kElementType<bfloat16> = ElementType::kBfloat16;

struct Problem {
  ElementType type;
  bool allow_tf32;
  int64_t outputs;  // of a branch
};

enum class Policy { kFma, kMma, kTwoPass };

constexpr const char* name_of(Policy policy) {
  return policy == Policy::kFma ? "fma" : policy == Policy::kMma ? "mma" : "two-pass";
}

struct Choice {
  Policy policy;
  std::string reason;
};

// `requested`: "auto", or the name of a policy; where that cannot take the problem, plain multiply-adds serve, and the
// reason says so. Throws std::invalid_argument where it is no policy's name.
Choice choose(const std::string& requested, const Device& device, const Problem& problem);

// Tiles of which the second of two passes has a block for each multiprocessor. `shares`: blocks to a tile.
int64_t tiles_of_a_wave(const Device& device, int64_t shares);

// How many tiles the two passes work on at a time: as many as `cache_bytes` hold h of, but whole waves of blocks, since
// a part of a wave takes as long as a whole one.
int64_t tiles_at_a_time(const Device& device, int64_t cache_bytes, int64_t tile_bytes, int64_t shares);

#if !defined(USE_CUDA)
// A GPU as it is sold for a compute capability, for host execution; the newest one known that is no newer.
Device typical_device(int arch);
#endif

}  // namespace jpu::separable_pyramid
