// Plans and starts the kernels of rows; included by their instantiations only.
#pragma once

#include "device/launch.h"
#include "norm_relu/output.h"
#include "norm_relu/output_gradient.h"
#include "norm_relu/output_sums.h"

namespace jpu::norm_relu {

// Of rows of so many channels that are served by vectors, or else by elements.
template <class T>
Tile row_tile(bool vectors, int channels) {
  return vectors ? tile_of(Path::kChannels, channels / Vector<T>::kSize) : tile_of(Path::kChannelElements, channels);
}

template <class T>
int row_tiles(bool vectors, int channels) {
  return ceil_divide(channels, row_tile<T>(vectors, channels).lanes * (vectors ? Vector<T>::kSize : 1));
}

// By their number alone, so that sums are cut alike wherever the tensors begin.
template <class T>
int32_t parts_of_rows(int32_t images, int32_t pixels, int32_t channels) {
  const bool vectors = channels % Vector<T>::kSize == 0;
  return parts_of(images, pixels, row_tiles<T>(vectors, channels), row_tile<T>(vectors, channels).rows);
}

// Whether all that a thread touches at once are 16 bytes: what belongs to a branch begins within no vector.
template <class T>
bool rows_by_vectors(const RowParams& p) {
  const void* all[] = {p.gradient, p.q, p.statistics, p.coefficients, p.out};
  for (const void* data : all) {
    if (reinterpret_cast<uintptr_t>(data) % kVectorBytes != 0) return false;
  }
  return p.width % Vector<T>::kSize == 0;
}

template <class T>
void plan_row_tiles(RowParams& p, bool vectors) {
  const Tile tile = row_tile<T>(vectors, p.channels);
  p.lanes = tile.lanes;
  p.rows = tile.rows;
  p.channel_tiles = row_tiles<T>(vectors, p.channels);
}

// For output and output_gradient, whose blocks stay with the pixels of one set of statistics.
//
// Args:
//   at_once: pixels of a thread's round.
//
// Returns:
//   How many blocks.
inline int64_t plan_row_groups(RowParams& p, int at_once) {
  p.group_pixels = p.sets == 1 ? int64_t{p.images} * p.pixels : p.pixels;
  const auto tiles = [&](int64_t pixels) { return p.group_pixels / pixels + (p.group_pixels % pixels != 0); };
  const int64_t columns = int64_t{p.sets} * p.channel_tiles, least = int64_t{p.rows} * at_once;
  p.rounds = rounds_of(columns * tiles(least));
  const int64_t result = tiles(least * p.rounds);
  p.pixel_tiles = static_cast<uint32_t>(result);
  return columns * result;
}

template <class Declare>
void declare_rows(const RowParams& p, int64_t bytes, int64_t sum_bytes, Declare&& declare) {
  const auto image = [&](const char* name, const void* data) {
    declare(Buffer{name, static_cast<const char*>(data) + p.first * bytes, bytes, {1, p.images, p.pixels, p.channels},
                   {0, int64_t{p.pixels} * p.pitch, p.pitch, 1}, Access::kRead});
  };
  const auto terms = [&](const char* name, const void* data, int count) {
    declare(Buffer{name, static_cast<const char*>(data) + p.first * sum_bytes, sum_bytes,
                   {1, p.sets, count, p.channels}, {0, int64_t{count} * p.pitch, p.pitch, 1}, Access::kRead});
  };
  image("q", p.q);
  if (p.gradient != nullptr) image("gradient", p.gradient);
  terms("statistics", p.statistics, kStatistics);
  if (p.coefficients != nullptr) terms("coefficients", p.coefficients, kCoefficients);
}

template <class T>
void output(RowParams p, void* stream) {
  const bool vectors = rows_by_vectors<T>(p);
  plan_row_tiles<T>(p, vectors);
  const int64_t blocks = plan_row_groups(p, kOutputPixels);
  const auto kernel = vectors ? &rows_output<T, Vector<T>::kSize> : &rows_output<T, 1>;
  launch("norm_relu output", kernel, {blocks, kThreads}, p, stream, [&](auto declare) {
    declare_rows(p, sizeof(T), sizeof(Accumulate<T>), declare);
    declare(Buffer{"output", p.out, sizeof(T), {1, p.images, p.pixels, p.channels},
                   {0, int64_t{p.pixels} * p.pitch, p.pitch, 1}, Access::kWrite});
  });
}

template <class T>
void output_sums(RowParams p, void* stream) {
  constexpr int V = Vector<T>::kSize;
  static_assert(kDynamicBytes<SumSlots<T, V>> == 0 && kDynamicBytes<SumSlots<T, 1>> == 0, "or launches ask for it");
  const bool vectors = rows_by_vectors<T>(p);
  plan_row_tiles<T>(p, vectors);
  const int64_t blocks = int64_t{p.images} * p.parts * p.channel_tiles;
  const auto kernel = vectors ? &rows_output_sums<T, V> : &rows_output_sums<T, 1>;
  launch("norm_relu output sums", kernel, {blocks, kThreads}, p, stream, [&](auto declare) {
    using A = Accumulate<T>;
    declare_rows(p, sizeof(T), sizeof(A), declare);
    const int64_t part = int64_t{kSums} * p.pitch;
    declare(Buffer{"sums", p.out, sizeof(A), {p.images, p.parts, kSums, p.channels},
                   {p.parts * part, part, p.pitch, 1}, Access::kWrite});
  });
}

template <class T>
void output_gradient(RowParams p, void* stream) {
  const bool vectors = rows_by_vectors<T>(p);
  plan_row_tiles<T>(p, vectors);
  const int64_t blocks = plan_row_groups(p, kGradientPixels);
  const auto kernel = vectors ? &rows_output_gradient<T, Vector<T>::kSize> : &rows_output_gradient<T, 1>;
  launch("norm_relu output gradient", kernel, {blocks, kThreads}, p, stream, [&](auto declare) {
    declare_rows(p, sizeof(T), sizeof(Accumulate<T>), declare);
    const int64_t branch = int64_t{p.images} * p.pixels * p.width;
    declare(Buffer{"gradient of q", p.out, sizeof(T),
                   {1, p.channels / p.width, int64_t{p.images} * p.pixels, p.width}, {0, branch, p.width, 1},
                   Access::kWrite});
  });
}

}  // namespace jpu::norm_relu
