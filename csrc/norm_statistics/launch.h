// Plans and starts the kernels; included by the instantiations only.
#pragma once

#include "device/launch.h"
#include "norm_statistics/coefficients.h"
#include "norm_statistics/pointwise_gradient.h"
#include "norm_statistics/statistics.h"

namespace jpu::norm_statistics {

inline Buffer contiguous(const char* name, const void* data, int64_t element_bytes, int64_t count, Access access) {
  return {name, data, element_bytes, {1, 1, 1, count}, {0, 0, 0, 1}, access};
}

template <class T>
void statistics(StatisticsParams p, void* stream) {
  using A = Accumulate<T>;
  p.tiles = p.groups > 0 ? p.groups : ceil_divide(p.channels, kLanes);
  const int64_t sets = p.groups > 0 ? p.images : 1, terms = int64_t{p.branches} * p.channels;
  const int64_t blocks = sets * p.branches * p.tiles;
  launch("norm_statistics statistics", &norm_merge<T>, {blocks, kThreads}, p, stream, [&](auto declare) {
    bool merges = false;
    const auto values = [&](const char* name, const void* data) {
      if (data != nullptr) declare(contiguous(name, data, sizeof(T), p.channels, Access::kRead));
    };
    for (int i = 0; i < p.branches; ++i) {
      merges |= p.norm[i].mean == nullptr;
      values("weight", p.norm[i].weight);
      values("bias", p.norm[i].bias);
      values("mean", p.norm[i].mean);
      values("var", p.norm[i].var);
    }
    if (merges) {
      declare(contiguous("moments", p.moments, sizeof(A), int64_t{p.images} * p.parts * 2 * terms, Access::kRead));
      declare(contiguous("counts", p.counts, sizeof(int32_t), int64_t{p.parts} * p.branches, Access::kRead));
    }
    declare(contiguous("statistics", p.statistics, sizeof(A), sets * kStatistics * terms, Access::kWrite));
  });
}

template <class T>
void fold(FoldParams p, void* stream) {
  using A = Accumulate<T>;
  const int64_t tiles = (p.values + kFoldLanes - 1) / kFoldLanes;
  p.tiles = static_cast<uint32_t>(tiles);
  launch("norm_statistics fold", &norm_fold<T>, {p.images * tiles, kThreads}, p, stream, [&](auto declare) {
    declare(Buffer{"parts", p.in, sizeof(A), {1, p.images, p.parts, p.values}, {0, p.image_stride, p.part_stride, 1},
                   Access::kRead});
    declare(contiguous("sums", p.out, sizeof(A), p.images * p.values, Access::kWrite));
  });
}

template <class T>
void coefficients(CoefficientsParams p, void* stream) {
  using A = Accumulate<T>;
  p.channel_tiles = ceil_divide(p.channels, kLanes);
  const int64_t sets = p.groups > 0 ? p.images : 1, terms = int64_t{p.branches} * p.channels;
  const int64_t blocks = int64_t{p.branches} * (p.channel_tiles + int64_t{p.images} * p.groups);
  launch("norm_statistics coefficients", &norm_coefficients<T>, {blocks, kThreads}, p, stream, [&](auto declare) {
    declare(contiguous("sums", p.sums, sizeof(A), p.images * kSums * terms, Access::kRead));
    declare(contiguous("statistics", p.statistics, sizeof(A), sets * kStatistics * terms, Access::kRead));
    for (int i = 0; i < p.branches; ++i) {
      if (p.weight[i] != nullptr) declare(contiguous("weight", p.weight[i], sizeof(T), p.channels, Access::kRead));
    }
    declare(contiguous("coefficients", p.coefficients, sizeof(A), sets * kCoefficients * terms, Access::kWrite));
    declare(contiguous("totals", p.totals, sizeof(A), p.images * terms, Access::kWrite));
    declare(contiguous("gradients", p.gradients, sizeof(A), 2 * terms, Access::kWrite));
  });
}

inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; }

template <class T>
void pointwise_gradient(PointwiseParams p, void* stream) {
  using A = Accumulate<T>;
  p.vectors = p.channels % Vector<T>::kSize == 0 && aligned(p.products) && aligned(p.gradient);
  for (int i = 0; i < p.branches; ++i) p.vectors = p.vectors && aligned(p.pointwise[i]);
  p.sum_tiles = ceil_divide(p.channels, kSumChannels);
  p.channel_tiles = ceil_divide(p.channels, kGradientLanes * (p.vectors ? Vector<T>::kSize : 1));
  p.output_tiles = ceil_divide(p.outputs, kGradientRows * kGradientWalk);
  const int64_t sum_blocks = int64_t{p.branches} * p.sets * p.sum_tiles;
  const int64_t blocks = sum_blocks + int64_t{p.branches} * p.output_tiles * p.channel_tiles;
  p.sum_blocks = static_cast<uint32_t>(sum_blocks);  // launch() refuses what does not fit
  const Grid grid{blocks, kThreads};
  launch("norm_statistics pointwise gradient", &norm_pointwise_gradient<T>, grid, p, stream, [&](auto declare) {
    const int64_t matrix = int64_t{p.outputs} * p.channels;
    declare(contiguous("products", p.products, sizeof(A), p.branches * p.sets * matrix, Access::kRead));
    for (int i = 0; i < p.branches; ++i) {
      const int64_t norm_bytes = p.norms_in_sums ? sizeof(A) : sizeof(T);
      const auto values = [&](const char* name, const void* data) {
        if (data != nullptr) declare(contiguous(name, data, norm_bytes, p.channels, Access::kRead));
      };
      declare(contiguous("pointwise weight", p.pointwise[i], sizeof(T), matrix, Access::kRead));
      values("weight", p.weight[i]);
      values("bias", p.bias[i]);
    }
    declare(Buffer{"totals of sets", p.set_totals, sizeof(A), {1, p.sets, p.branches, p.outputs},
                   {0, p.set_stride, p.outputs, 1}, Access::kRead});
    declare(contiguous("totals", p.all_totals, sizeof(A), int64_t{p.branches} * p.outputs, Access::kRead));
    declare(contiguous("gradient", p.gradient, sizeof(T), p.branches * matrix, Access::kWrite));
    declare(contiguous("sums", p.sums, sizeof(A), int64_t{p.sets} * kSums * p.branches * p.channels, Access::kWrite));
  });
}

}  // namespace jpu::norm_statistics
