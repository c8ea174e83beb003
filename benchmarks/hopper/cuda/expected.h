// What the host knows: shapes, the values that tensors are filled with, and what kernels must make of them.
// No CUDA in it, so that a C++ compiler alone can hold it against another's formulas.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__CUDACC__)
#define HOPPER_BOTH __host__ __device__ inline
#else
#define HOPPER_BOTH inline
#endif

namespace hopper {

// --- shapes --------------------------------------------------------------------------------------------------------

constexpr int kChannels = 64;             // of a step: 128 bytes of bfloat16, the width of the swizzle
constexpr int kRowBytes = 2 * kChannels;  // of a pixel, and of an operand's row
constexpr int kTileWidth = 16, kTileHeight = 8;
constexpr int kPixels = kTileWidth * kTileHeight;  // rows of the left operand
constexpr int kBoxWidth = kTileWidth + 2, kBoxHeight = kTileHeight + 2;  // with the halo of a 3 × 3 convolution
constexpr int kBoxBytes = kBoxWidth * kBoxHeight * kRowBytes;
constexpr int kOutputs = 256;  // rows of the right operand
constexpr int kTaps = 9;

// Where 128-byte rows from an address that is a multiple of 1024 have a byte: the 16-byte unit by the row's number.
HOPPER_BOTH int swizzled(int offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// Rows of 128 bytes, 16-byte units swizzled by the row's number: 8 rows are 1024 bytes, to which `address` is aligned.
// The start may be moved by 32 bytes for the next 16 elements of the rows: the swizzle is of the address's bits.
HOPPER_BOTH uint64_t describe_operand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kNextRows = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // distance along a row, of which this swizzle has one unit only
  return kSwizzle128 | kNextRows | kUnused | ((address & 0x3ffff) >> 4);
}

// --- numbers -------------------------------------------------------------------------------------------------------

inline uint16_t to_bfloat16(float x) {  // of finite numbers; to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float to_float(uint16_t bits16) {
  const uint32_t bits = uint32_t{bits16} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t mix(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// The i-th number of a tensor. Small whole numbers make every sum of a check exact; the others, whose bits vary as
// those of activations do, are for timing, since the power that products take depends on them.
inline float number(uint32_t tensor, uint32_t i, bool exact, int largest) {
  const uint32_t bits = mix(i + mix(tensor));
  if (exact) return static_cast<float>(static_cast<int>(bits % (2 * largest + 1)) - largest);
  return (static_cast<float>(bits & 0xffff) + static_cast<float>(bits >> 16)) / 65536.0f - 1.0f;
}

// --- tiles of strided copies ---------------------------------------------------------------------------------------

struct Extent {
  int images, height, width, channels;
};

// Which tiles a launch reads: of every residue class modulo `stride` so many across and down, `pitch` apart and
// beginning at `first`, in pixels of the class; `blocks` of 64 channels each.
struct Walk {
  int images, stride, across, down, pitch_x, pitch_y, first, blocks;
};

HOPPER_BOTH int positions(const Walk& walk) {
  return walk.images * walk.stride * walk.stride * walk.down * walk.across;
}

struct Start {
  int n, y, x;
};

HOPPER_BOTH Start start_of(const Walk& walk, int position) {
  const int tile_x = position % walk.across, down = position / walk.across;
  const int tile_y = down % walk.down, rest = down / walk.down;
  const int class_x = rest % walk.stride, more = rest / walk.stride;
  const int class_y = more % walk.stride;
  return {more / walk.stride, class_y + walk.stride * (tile_y * walk.pitch_y + walk.first),
          class_x + walk.stride * (tile_x * walk.pitch_x + walk.first)};
}

// All tiles of a tensor: side by side, or those of a 3 × 3 convolution's results, whose boxes overlap and reach beyond
// the image. Without the halo, sides are multiples of a box's times the stride.
inline Walk walk_of(const Extent& e, bool halo, int stride) {
  const int width = (e.width + stride - 1) / stride, height = (e.height + stride - 1) / stride;  // of a class
  const int blocks = e.channels / kChannels;
  if (!halo) return {e.images, stride, width / kBoxWidth, height / kBoxHeight, kBoxWidth, kBoxHeight, 0, blocks};
  const int across = (width + kTileWidth - 1) / kTileWidth, down = (height + kTileHeight - 1) / kTileHeight;
  return {e.images, stride, across, down, kTileWidth, kTileHeight, -1, blocks};
}

// Step by step, a block takes all channels of a position, then the position that lies `blocks_of_grid` further.
HOPPER_BOTH int position_of(const Walk& walk, int block, int blocks_of_grid, int step) {
  return static_cast<int>((block + int64_t{step / walk.blocks} * blocks_of_grid) % positions(walk));
}

// An element that tells where it is from: a normal number, whatever a copy may make of others.
HOPPER_BOTH uint16_t marked(int n, int y, int x, int c) {
  const int which = c % 4;
  const int where = which == 0 ? n : which == 1 ? y : which == 2 ? x : c / 8;
  return static_cast<uint16_t>(0x4000 + where + (c % 8 >= 4 ? 0x1000 : 0));
}

// The bytes of a tile, as 16-bit elements: pixels by rows, 64 channels each, zeros where the tensor has no pixel.
inline std::vector<uint16_t> expected_tile(const Extent& tensor, Start start, int stride, int channel, bool swizzle) {
  std::vector<uint16_t> tile(kBoxBytes / 2);
  for (int row = 0; row < kBoxWidth * kBoxHeight; ++row) {
    const int y = start.y + stride * (row / kBoxWidth), x = start.x + stride * (row % kBoxWidth);
    const bool inside = y >= 0 && y < tensor.height && x >= 0 && x < tensor.width;
    for (int c = 0; c < kChannels; ++c) {
      const int at = row * kRowBytes + 2 * c;
      tile[(swizzle ? swizzled(at) : at) / 2] = inside ? marked(start.n, y, x, channel + c) : 0;
    }
  }
  return tile;
}

// --- depthwise and product -----------------------------------------------------------------------------------------

// Result [128 pixels][64 channels], rounded once, of a box [10][18][64] and taps [9 + 1][64], the last the summand.
inline std::vector<uint16_t> expected_depthwise(const uint16_t* box, const float* taps) {
  std::vector<uint16_t> result(kPixels * kChannels);
  for (int p = 0; p < kPixels; ++p) {
    for (int c = 0; c < kChannels; ++c) {
      float sum = taps[kTaps * kChannels + c];
      for (int tap = 0; tap < kTaps; ++tap) {
        const int y = p / kTileWidth + tap / 3, x = p % kTileWidth + tap % 3;
        sum += taps[tap * kChannels + c] * to_float(box[(y * kBoxWidth + x) * kChannels + c]);
      }
      result[p * kChannels + c] = to_bfloat16(sum);
    }
  }
  return result;
}

// sum [128][256] += A [128][64] · Bᵀ, with the 64 columns of B [256][pitch].
inline void add_product(std::vector<float>& sum, const uint16_t* a, const uint16_t* b, int pitch) {
  std::vector<float> columns(kChannels * kOutputs);
  for (int o = 0; o < kOutputs; ++o) {
    for (int c = 0; c < kChannels; ++c) columns[c * kOutputs + o] = to_float(b[static_cast<int64_t>(o) * pitch + c]);
  }
  for (int p = 0; p < kPixels; ++p) {
    float* row = sum.data() + p * kOutputs;
    for (int c = 0; c < kChannels; ++c) {
      const float x = to_float(a[p * kChannels + c]);
      for (int o = 0; o < kOutputs; ++o) row[o] += x * columns[c * kOutputs + o];
    }
  }
}

}  // namespace hopper
