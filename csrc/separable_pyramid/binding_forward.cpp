// jpu_cuda::separable_pyramid, and which of its kernels serves a call; schemas stand in jpu_cuda/ops.
#include "separable_pyramid/run.h"

namespace jpu::separable_pyramid {
namespace {

Tensor separable_pyramid(Tensors levels, Tensors depthwise, Tensors pointwise, std::vector<int64_t> dilations,
                         Term scale, Term shift, Term out_scale, Term out_shift, bool relu, bool allow_tf32,
                         int64_t arch, std::string policy, int64_t workspace_bytes) {
  const Params p = describe(levels, depthwise, pointwise, dilations, scale, shift, out_scale, out_shift, relu);
  STD_TORCH_CHECK(workspace_bytes >= 0, "workspace_bytes: expected 0 or more, got ", workspace_bytes);
  Tensor output = empty_image({p.batch, int64_t{p.branches} * p.outputs, p.height, p.width}, all_channels_last(levels),
                              levels[0]);
  run<false>(p, levels, output, {allow_tf32, arch, policy, workspace_bytes});
  return output;
}

// "policy: reason" of a call whose branches have so many outputs.
std::string separable_pyramid_policy(Tensor like, int64_t outputs, bool allow_tf32, int64_t arch, std::string policy) {
  std::string result;
  dispatch_dtype(like, [&](auto element) {
    const Choice choice = choose(policy, device_of(like, arch), {kElementType<decltype(element)>, allow_tf32, outputs});
    result = name_of(choice.policy) + (": " + choice.reason);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("separable_pyramid", TORCH_BOX(&separable_pyramid));
  m.impl("separable_pyramid_policy", TORCH_BOX(&separable_pyramid_policy));
}

}  // namespace jpu::separable_pyramid
