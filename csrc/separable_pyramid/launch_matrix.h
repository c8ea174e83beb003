// Plans and starts the tensor cores' kernels; included by the instantiations only.
#pragma once

#include "separable_pyramid/launch.h"
#include "separable_pyramid/mma_forward.h"
#include "separable_pyramid/two_pass.h"

namespace jpu::separable_pyramid {

template <class T>
int64_t plan_matrix(Params& p) {
  const int64_t blocks = plan<T>(p, kMatrixColumns);
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; };
  // Pixels of a patch are found by 32 bits, from its corner; further apart they are read element by element.
  constexpr int64_t kFar = INT32_MAX / kMaxReach;
  for (int i = 0; i < p.levels; ++i) {
    p.level[i].vectors &= p.level[i].stride.h + p.level[i].stride.w <= kFar;
  }
  p.weight_vectors = p.pointwise_vectors;
  for (int i = 0; i < p.branches; ++i) p.weight_vectors &= aligned(p.branch[i].depthwise);
  constexpr int kTerms = Vector<float>::kSize;
  p.term_vectors = p.whole_vectors && aligned(p.inner.scale) && aligned(p.inner.shift) &&
                   p.inner.scale_image % kTerms == 0 && p.inner.shift_image % kTerms == 0;
  return blocks;
}

template <class T, bool kMoments>
void forward_mma(Params p, void* stream) {
  const int64_t blocks = plan_matrix<T>(p);
  const Grid grid{blocks, kThreads, kDynamicBytes<MmaMemory<T, kMoments>>};
  constexpr const char* kName = kMoments ? "separable_pyramid mma with moments" : "separable_pyramid mma";
  launch(kName, &pyramid_mma<T, kMoments>, grid, p, stream, [&](auto declare) {
    declare_inputs<T>(p, declare);
    declare_results<T, kMoments>(p, declare, Access::kWrite);
  });
}

// Returns the number of tiles.
template <class T>
int64_t plan_two_pass(TwoPassParams& t) {
  Params& p = t.forward;
  plan_matrix<T>(p);
  t.chunks = 0;
  for (int i = 0; i < p.levels; ++i) t.chunks += ceil_divide(p.level[i].channels, kChunk<sizeof(T)>);
  t.splits = ceil_divide(t.chunks, kSplitChunks);
  int64_t tiles = 0;
  for (int i = 0; i < p.branches; ++i) {
    p.branch[i].first_block = static_cast<uint32_t>(tiles);
    tiles += p.branch[i].tiling.tiles();
  }
  return tiles * p.batch;
}

template <class T>
NormalisedSize normalised_size(const Params& params) {
  TwoPassParams t{params, nullptr, 0, 0, 0};
  const int64_t tiles = plan_two_pass<T>(t);
  return {tiles, int64_t{t.chunks} * kPixels * kUnits * kVectorBytes};
}

template <class T, class Declare>
void declare_normalised(const TwoPassParams& t, int64_t tiles, Declare& declare, Access access) {
  declare(contiguous("normalised", t.normalised, sizeof(T), tiles * kPixels * t.chunks * kChunk<sizeof(T)>, access));
}

// h of so many tiles from the first on. Instantiated once a dtype, whatever becomes of h.
template <class T>
void normalise_tiles(const TwoPassParams& t, int64_t tiles, void* stream) {
  launch("separable_pyramid normalise", &pyramid_normalise<T>,
         {tiles * t.splits, kNormalisers, kDynamicBytes<NormaliseShared<T>>}, t, stream, [&](auto declare) {
           declare_inputs<T>(t.forward, declare);
           declare_normalised<T>(t, tiles, declare, Access::kWrite);
         });
}

template <class T, bool kMoments>
void forward_two_pass(Params params, void* normalised, int64_t room, void* stream) {
  TwoPassParams t{params, normalised, 0, 0, 0};
  const int64_t all = plan_two_pass<T>(t);
  if (all > INT32_MAX) {
    throw std::runtime_error("separable_pyramid normalise: expected at most 2147483647 tiles, got " +
                             std::to_string(all));
  }
  for (int64_t first = 0; first < all; first += room) {
    const int64_t tiles = all - first < room ? all - first : room;
    t.first_tile = static_cast<uint32_t>(first);
    normalise_tiles<T>(t, tiles, stream);
    const Grid grid{tiles * t.forward.output_tiles, kThreads, kDynamicBytes<ProductMemory<T, kMoments>>};
    constexpr const char* kName = kMoments ? "separable_pyramid product with moments" : "separable_pyramid product";
    launch(kName, &pyramid_product<T, kMoments>, grid, t, stream, [&](auto declare) {
      declare_inputs<T>(t.forward, declare);
      declare_normalised<T>(t, tiles, declare, Access::kRead);
      // A part of it: the rest belongs to other rounds.
      declare_results<T, kMoments>(t.forward, declare, all == tiles ? Access::kWrite : Access::kScratch);
    });
  }
}

}  // namespace jpu::separable_pyramid
