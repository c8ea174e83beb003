// jpu_cuda::separable_pyramid_backward; schemas stand in jpu_cuda/ops.
#include "separable_pyramid/arguments.h"

namespace jpu::separable_pyramid {
namespace {

// Gradients of the levels and of the six others in the order of the arguments, those that `needed` (0 or 1 each) asks
// for. `output` is that of the forward pass, needed for ReLU only.
Tensors separable_pyramid_backward(Tensors levels, Tensors depthwise, Tensors pointwise,
                                   std::vector<int64_t> dilations, Term scale, Term shift, Term out_scale,
                                   Term out_shift, Tensor gradient, Term output, std::vector<int64_t> needed,
                                   int64_t workspace_bytes) {
  GradientParams g{};
  Params& p = g.forward;
  p = describe(levels, depthwise, pointwise, dilations, scale, shift, out_scale, out_shift, output.has_value());
  const Tensor& first = levels[0];
  const auto check_output = [&](const Tensor& t, const char* name) {
    check_like(t, first, name, first.scalar_type());
    check_shape(t, {p.batch, int64_t{p.branches} * p.outputs, p.height, p.width}, name);
  };
  check_output(gradient, "gradient");
  if (output.has_value()) check_output(*output, "output");
  STD_TORCH_CHECK(needed.size() == levels.size() + 6, "needed: expected a number for each level and 6 more, got ",
                  needed.size());
  const Term terms[] = {scale, shift, out_scale, out_shift};
  for (size_t i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(terms[i].has_value() || needed[levels.size() + 2 + i] == 0,
                    "needed: expected no gradient of a term that is not there");
  }

  Tensors results;
  const auto add = [&](bool wanted, auto&& make) -> void* {
    if (!wanted) return nullptr;
    results.push_back(make());
    return results.back().data_ptr();
  };
  int described = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const Tensor& level = levels[i];
    const bool exists = level.size(1) > 0;  // then it is among those described
    void* data = add(needed[i] != 0, [&] {
      return empty_image({p.batch, level.size(1), p.height, p.width}, suggests_channels_last(level), level);
    });
    if (exists && data != nullptr) {
      g.level[described].data = data;
      g.level[described].stride = strides_of(results.back());
    }
    described += exists;
  }
  const size_t base = levels.size();
  const ScalarType dtype = first.scalar_type();
  g.depthwise = add(needed[base], [&] { return empty({p.branches, p.channels, 1, 3, 3}, dtype, first); });
  g.pointwise = add(needed[base + 1], [&] { return empty({p.branches, p.outputs, p.channels, 1, 1}, dtype, first); });
  const auto like_term = [](const Term& t) {
    return [&t] { return empty(shape_of(*t), t->scalar_type(), *t); };
  };
  g.inner_scale = add(needed[base + 2], like_term(scale));
  g.inner_shift = add(needed[base + 3], like_term(shift));
  g.outer_scale = add(needed[base + 4], like_term(out_scale));
  g.outer_shift = add(needed[base + 5], like_term(out_shift));
  if (results.empty()) return results;

  g.gradient = gradient.data_ptr();
  g.gradient_stride = strides_of(gradient);
  if (output.has_value()) {
    p.output = output->data_ptr();
    p.output_stride = strides_of(*output);
  }
  const OnDevice device(first);
  dispatch_dtype(first, [&](auto element) {
    using T = decltype(element);
    const Workspace sizes = plan_gradient<T>(g, workspace_bytes);
    Tensors kept;
    const auto workspace = [&](int64_t count) -> void* {
      if (count == 0) return nullptr;
      kept.push_back(empty({count}, sum_dtype(first), first));
      return kept.back().data_ptr();
    };
    g.products = workspace(sizes.products);
    g.sums = workspace(sizes.sums);
    g.terms = workspace(sizes.terms);
    if (sizes.images > 0) {
      kept.push_back(empty_image({sizes.images, int64_t{p.branches} * p.channels, p.height, p.width},
                                 all_channels_last(levels), first));
      g.inputs = kept.back().data_ptr();
      g.inputs_stride = strides_of(kept.back());
    }
    backward<T>(g, device.stream());
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("separable_pyramid_backward", TORCH_BOX(&separable_pyramid_backward));
}

}  // namespace jpu::separable_pyramid
