// Training: what is done to q, the rows of all branches before their last norm and ReLU. A row is the channels of a
// pixel of a channels_last image, those of the branches one after the other. With ŷ = (q − mean) · rstd:
//   output            out = max(0, scale · q + shift), rounded once
//   output_sums       Σ g, Σ g·ŷ and Σ ŷ over parts of an image, g = gradient where out, as rounded, is not ≤ 0
//   output_gradient   dq = k · g − a − b · ŷ of some branches, rounded once
//
// ŷ is centred before it is scaled: scale · q + shift would lose in the sums what q's mean exceeds its deviation by.
#pragma once

#include <cstdint>

#include "common/norm_sums.h"
#include "norm_relu/rows_config.h"

namespace jpu::norm_relu {

struct RowParams {
  const void* gradient;      // as q; null for output
  const void* q;             // [images, pixels, pitch]
  const void* statistics;    // [sets, kStatistics, pitch]
  const void* coefficients;  // [sets, kCoefficients, pitch]; null but for output_gradient
  void* out;                 // as q; [images, parts, kSums, pitch]; [channels / width, images, pixels, width]
  int32_t images, pixels;    // of an image
  int32_t sets;              // 1, or one an image
  int32_t pitch;             // channels of a row
  int32_t first, channels;   // those that are served; all but for output_gradient
  int32_t width;             // channels of a branch
  int32_t parts;             // of an image, which are summed up one by one
  // The rest is set by the launch.
  int32_t lanes, rows;
  int32_t channel_tiles;
  uint32_t pixel_tiles;  // of a group of pixels that share their statistics
  int64_t group_pixels;
  int32_t rounds;
};

// Into how many parts output_sums takes an image apart.
//
// Args:
//   images, pixels, channels: of q.
template <class T>
int32_t parts_of_rows(int32_t images, int32_t pixels, int32_t channels);

// Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void output(RowParams params, void* stream);
template <class T>
void output_sums(RowParams params, void* stream);
template <class T>
void output_gradient(RowParams params, void* stream);

}  // namespace jpu::norm_relu
