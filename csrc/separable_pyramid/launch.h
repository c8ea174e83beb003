// Plans and starts the kernels; included by the instantiations only.
#pragma once

#include "device/launch.h"
#include "separable_pyramid/forward.h"
#include "separable_pyramid/vectors.h"

namespace jpu::separable_pyramid {

// Sets what the struct says for blocks of so many outputs; returns the number of blocks.
template <class T>
int64_t plan(Params& p, int columns) {
  constexpr int V = Vector<T>::kSize;
  p.whole_vectors = true;
  for (int i = 0; i < p.levels; ++i) {
    Level& level = p.level[i];
    level.vectors = level.channels % V == 0 && channels_in_vectors<T>(level.data, level.stride);
    p.whole_vectors &= level.channels % V == 0;
  }
  p.output_vectors = p.outputs % V == 0 && channels_in_vectors<T>(p.output, p.output_stride);
  p.pointwise_vectors = p.whole_vectors;
  p.output_tiles = ceil_divide(p.outputs, columns);
  int64_t blocks = 0;
  for (int i = 0; i < p.branches; ++i) {
    Branch& branch = p.branch[i];
    branch.tiling = choose_tiling<kPixels>(branch.dilation, p.height, p.width);
    branch.first_block = static_cast<uint32_t>(blocks);
    p.pointwise_vectors &= reinterpret_cast<uintptr_t>(branch.pointwise) % kVectorBytes == 0;
    blocks += branch.tiling.tiles() * p.output_tiles;  // launch() refuses more than 2^31 of them
  }
  return blocks * p.batch;
}

inline Buffer contiguous(const char* name, const void* data, int64_t element_bytes, int64_t count, Access access) {
  return {name, data, element_bytes, {1, 1, 1, count}, {0, 0, 0, 1}, access};
}

template <class T, class Declare>
void declare_inputs(const Params& p, Declare& declare) {
  using A = Accumulate<T>;
  for (int i = 0; i < p.levels; ++i) {
    const Level& l = p.level[i];
    declare(Buffer{"level", l.data, sizeof(T), {p.batch, l.channels, p.height, p.width},
                   {l.stride.n, l.stride.c, l.stride.h, l.stride.w}, Access::kRead});
  }
  for (int i = 0; i < p.branches; ++i) {
    declare(contiguous("depthwise weight", p.branch[i].depthwise, sizeof(T), int64_t{p.channels} * 9, Access::kRead));
    declare(contiguous("pointwise weight", p.branch[i].pointwise, sizeof(T), int64_t{p.outputs} * p.channels,
                       Access::kRead));
  }
  const auto term = [&](const char* name, const void* data, int64_t image, int64_t channels) {
    if (data == nullptr) return;
    const int64_t images = image == 0 ? 1 : p.batch;
    declare(Buffer{name, data, sizeof(A), {images, 1, p.branches, channels}, {image, 0, channels, 1}, Access::kRead});
  };
  term("scale", p.inner.scale, p.inner.scale_image, p.channels);
  term("shift", p.inner.shift, p.inner.shift_image, p.channels);
  term("out_scale", p.outer.scale, 0, p.outputs);
  term("out_shift", p.outer.shift, 0, p.outputs);
}

template <class T, class Declare>
void declare_output(const Params& p, Declare& declare, Access access) {
  const Strides& s = p.output_stride;
  declare(Buffer{"output", p.output, sizeof(T), {p.batch, int64_t{p.branches} * p.outputs, p.height, p.width},
                 {s.n, s.c, s.h, s.w}, access});
}

// After plan().
template <class T, bool kMoments, class Declare>
void declare_results(const Params& p, Declare& declare, Access access) {
  using A = Accumulate<T>;
  declare_output<T>(p, declare, access);
  if constexpr (kMoments) {
    const TileMoments& t = p.tile_moments;
    const int64_t own = int64_t{2} * p.outputs, part = p.branches * own;
    for (int i = 0; i < p.branches; ++i) {
      declare(Buffer{"moments", static_cast<const A*>(t.moments) + i * own, sizeof(A),
                     {p.batch, p.branch[i].tiling.tiles(), 1, own}, {t.parts * part, part, 0, 1}, access});
    }
    declare(contiguous("counts", t.counts, sizeof(int32_t), t.parts * p.branches, access));
  }
}

template <class T, bool kMoments>
void forward(Params p, void* stream) {
  const int64_t blocks = plan<T>(p, kColumns);
  const Grid grid{blocks, kThreads, kDynamicBytes<ForwardMemory<T, kMoments>>};
  constexpr const char* kName = kMoments ? "separable_pyramid forward with moments" : "separable_pyramid forward";
  launch(kName, &pyramid_forward<T, kMoments>, grid, p, stream, [&](auto declare) {
    declare_inputs<T>(p, declare);
    declare_results<T, kMoments>(p, declare, Access::kWrite);
  });
}

}  // namespace jpu::separable_pyramid
