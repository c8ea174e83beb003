// jpu_cuda::training_products; schemas stand in jpu_cuda/ops.
#include "separable_pyramid/run.h"

namespace jpu::separable_pyramid {
namespace {

// [D, C], or [N, D, C] of which each image lies together.
const void* inner_term(const Tensor& t, const Params& p, const Tensor& like, const char* name, int64_t* image_stride) {
  check_like(t, like, name, sum_dtype(like));
  const bool by_image = t.dim() == 3;
  check_shape(t, by_image ? std::vector<int64_t>{p.batch, p.branches, p.channels}
                          : std::vector<int64_t>{p.branches, p.channels}, name);
  const int64_t d = t.dim() - 2;
  STD_TORCH_CHECK((p.channels == 1 || t.stride(d + 1) == 1) && (p.branches == 1 || t.stride(d) == p.channels), name,
                  ": expected channels and branches that lie together, got other strides");
  if (by_image && p.batch > 1) *image_stride = t.stride(0);
  return t.data_ptr();
}

Tensors training_products(Tensors levels, Tensors depthwise, std::vector<int64_t> dilations, Tensors pointwise,
                          Tensor scale, Tensor shift, bool allow_tf32, int64_t arch, std::string policy,
                          int64_t workspace_bytes) {
  Params p = describe(levels, depthwise, pointwise, dilations, {}, {}, {}, {}, false);
  const Tensor& first = levels[0];
  for (size_t i = 0; i < levels.size(); ++i) check_channels_last(levels[i], indexed("levels", i));
  p.inner.scale = inner_term(scale, p, first, "scale", &p.inner.scale_image);
  p.inner.shift = inner_term(shift, p, first, "shift", &p.inner.shift_image);
  STD_TORCH_CHECK(workspace_bytes >= 0, "workspace_bytes: expected 0 or more, got ", workspace_bytes);
  STD_TORCH_CHECK(p.batch >= 1, "levels: expected at least one image, got none");
  TileMoments& t = p.tile_moments;
  for (const int64_t dilation : dilations) {
    t.parts = std::max(t.parts, choose_tiling<kPixels>(static_cast<int>(dilation), p.height, p.width).tiles());
  }
  Tensor output = empty_image({p.batch, int64_t{p.branches} * p.outputs, p.height, p.width}, true, first);
  const Tensor moments = empty({p.batch, t.parts, p.branches, 2, p.outputs}, sum_dtype(first), first);
  const Tensor counts = empty({t.parts, p.branches}, ScalarType::Int, first);
  t.moments = moments.data_ptr();
  t.counts = static_cast<int32_t*>(counts.data_ptr());
  run<true>(p, levels, output, {allow_tf32, arch, policy, workspace_bytes});
  return {output, moments, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("training_products", TORCH_BOX(&training_products));
}

}  // namespace jpu::separable_pyramid
