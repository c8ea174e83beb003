// jpu_cuda::training_moments, training_normalised, training_depthwise_gradient and training_level_gradient; schemas
// stand in jpu_cuda/ops, which alone calls them.
#include <optional>
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "separable_pyramid/training.h"

namespace jpu::separable_pyramid {
namespace {

using Optionals = std::vector<std::optional<Tensor>>;

void check_branches(const Tensors& depthwise, const std::vector<int64_t>& dilations) {
  STD_TORCH_CHECK(!dilations.empty() && dilations.size() <= kMaxBranches, "dilations: expected 1 to ", kMaxBranches,
                  ", got ", dilations.size());
  STD_TORCH_CHECK(depthwise.size() == dilations.size(), "depthwise: expected one a dilation, ", dilations.size(),
                  ", got ", depthwise.size());
}

void check_group(int64_t first, int64_t branches, size_t all) {
  const int64_t count = static_cast<int64_t>(all);
  STD_TORCH_CHECK(first >= 0 && branches >= 1 && first <= count && branches <= count - first,
                  "branches: expected some of ", count, ", got ", branches, " from ", first);
}

// Batch, size and channels of images, of which `channels` are all together.
void describe_images(Params& p, const std::vector<int64_t>& images, int64_t channels, const char* name) {
  STD_TORCH_CHECK(channels >= 1 && channels <= kMaxChannels, name, ": expected 1 to ", kMaxChannels,
                  " channels, got ", channels);
  STD_TORCH_CHECK(images[0] >= 1 && images[0] <= INT32_MAX && images[2] >= 1 && images[2] <= kMaxSize &&
                      images[3] >= 1 && images[3] <= kMaxSize && images[2] * images[3] <= INT32_MAX,
                  name, ": expected 1 to 2147483647 images of 1 to 2147483647 pixels, got ", text_of(images));
  p.batch = static_cast<int32_t>(images[0]);
  p.height = static_cast<int32_t>(images[2]);
  p.width = static_cast<int32_t>(images[3]);
  p.channels = static_cast<int32_t>(channels);
}

// Levels side by side, or their gradients; an absent one has so many channels.
void add_level(Params& p, const std::optional<Tensor>& level, int64_t channels, int64_t first) {
  Level& l = p.level[p.levels++];
  l.data = level.has_value() ? level->data_ptr() : nullptr;
  if (level.has_value()) l.stride = strides_of(*level);
  l.channels = static_cast<int32_t>(channels);
  l.first = static_cast<int32_t>(first);
}

void describe_levels(Params& p, const Tensors& levels) {
  STD_TORCH_CHECK(!levels.empty() && levels.size() <= kMaxLevels, "levels: expected 1 to ", kMaxLevels, ", got ",
                  levels.size());
  int64_t channels = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    check_image(levels[i], levels[0], "levels", i);
    STD_TORCH_CHECK(levels[i].size(2) == levels[0].size(2) && levels[i].size(3) == levels[0].size(3),
                    indexed("levels", i), ": expected the size of levels[0], ", text_of(shape_of(levels[0])), ", got ",
                    text_of(shape_of(levels[i])));
    if (levels[i].size(1) > 0) add_level(p, levels[i], levels[i].size(1), channels);
    channels += levels[i].size(1);
  }
  describe_images(p, shape_of(levels[0]), channels, "levels");
}

void add_branch(Params& p, const Tensors& depthwise, const std::vector<int64_t>& dilations, size_t i,
                const Tensor& like) {
  STD_TORCH_CHECK(dilations[i] >= 1 && dilations[i] <= kMaxDilation, indexed("dilations", i), ": expected 1 to ",
                  kMaxDilation, ", got ", dilations[i]);
  check_like(depthwise[i], like, indexed("depthwise", i), like.scalar_type());
  check_contiguous(depthwise[i], {p.channels, 1, 3, 3}, indexed("depthwise", i));
  Branch& branch = p.branch[p.branches++];
  branch.depthwise = depthwise[i].data_ptr();
  branch.dilation = static_cast<int32_t>(dilations[i]);
}

// Of those branches that `wanted` names.
TrainingParams describe(const Tensors& levels, const Tensors& depthwise, const std::vector<int64_t>& dilations,
                        const std::vector<bool>& wanted) {
  TrainingParams t{};
  describe_levels(t.forward, levels);
  t.all_branches = static_cast<int32_t>(dilations.size());
  for (size_t i = 0; i < dilations.size(); ++i) {
    if (!wanted[i]) continue;
    t.number[t.forward.branches] = static_cast<int32_t>(i);
    add_branch(t.forward, depthwise, dilations, i, levels[0]);
  }
  return t;
}

std::vector<bool> group_of(const Tensors& depthwise, const std::vector<int64_t>& dilations, int64_t first,
                           int64_t branches) {
  check_branches(depthwise, dilations);
  check_group(first, branches, dilations.size());
  std::vector<bool> wanted(dilations.size());
  for (int64_t i = first; i < first + branches; ++i) wanted[i] = true;
  return wanted;
}

// [R, ...] of so many arrays of channels a branch, in the type of sums. Returns elements from one set to the next, 0 if
// there is one.
int64_t check_sets(const Tensor& sets, const Params& p, int64_t arrays, int64_t branches, const Tensor& like,
                   const char* name) {
  check_like(sets, like, name, sum_dtype(like));
  const int64_t count = sets.dim() > 0 ? sets.size(0) : 0;
  STD_TORCH_CHECK(count == 1 || count == p.batch, name, ": expected 1 set or one an image, ", p.batch, ", got ", count);
  check_contiguous(sets, {count, arrays, branches, p.channels}, name);
  return count == 1 ? 0 : arrays * branches * p.channels;
}

std::vector<int64_t> shape_of_rows(const Params& p) {
  return {p.branches, int64_t{p.batch} * p.height * p.width, p.channels};
}

Tensors training_moments(Tensors levels, Tensors depthwise, std::vector<int64_t> dilations,
                         std::vector<int64_t> wanted) {
  check_branches(depthwise, dilations);
  STD_TORCH_CHECK(wanted.size() == dilations.size(), "wanted: expected a number a dilation, ", dilations.size(),
                  ", got ", wanted.size());
  TrainingParams t = describe(levels, depthwise, dilations, std::vector<bool>(wanted.begin(), wanted.end()));
  const Params& p = t.forward;
  STD_TORCH_CHECK(p.branches > 0, "wanted: expected at least one branch, got none");
  const Tensor& first = levels[0];
  const OnDevice device(first);
  Tensors results;
  dispatch_dtype(first, [&](auto element) {
    using T = decltype(element);
    plan_training<T>(t);
    results.push_back(empty({p.batch, t.most_parts, t.all_branches, 2, p.channels}, sum_dtype(first), first));
    results.push_back(empty({t.most_parts, t.all_branches}, ScalarType::Int, first));
    t.moments = results[0].data_ptr();
    t.counts = results[1].data_ptr();
    moments<T>(t, device.stream());
  });
  return results;
}

Tensor training_normalised(Tensors levels, Tensors depthwise, std::vector<int64_t> dilations, Tensor statistics,
                           int64_t first, int64_t branches) {
  TrainingParams t = describe(levels, depthwise, dilations, group_of(depthwise, dilations, first, branches));
  const Params& p = t.forward;
  t.statistics_image = check_sets(statistics, p, kStatistics, t.all_branches, levels[0], "statistics");
  t.statistics = statistics.data_ptr();
  Tensor rows = empty(shape_of_rows(p), levels[0].scalar_type(), levels[0]);
  t.normalised = rows.data_ptr();
  const OnDevice device(levels[0]);
  dispatch_dtype(levels[0], [&](auto element) {
    using T = decltype(element);
    plan_training<T>(t);
    normalised<T>(t, device.stream());
  });
  return rows;
}

Tensors training_depthwise_gradient(Tensors levels, Tensors depthwise, std::vector<int64_t> dilations,
                                    Tensor coefficients, Tensor normalised, Tensor gradient, int64_t first,
                                    int64_t branches, bool weights) {
  TrainingParams t = describe(levels, depthwise, dilations, group_of(depthwise, dilations, first, branches));
  const Params& p = t.forward;
  const Tensor& like = levels[0];
  const ScalarType dtype = like.scalar_type();
  t.coefficients_image = check_sets(coefficients, p, kCoefficients, p.branches, like, "coefficients");
  t.coefficients = coefficients.data_ptr();
  check_like(normalised, like, "normalised", dtype);
  check_contiguous(normalised, shape_of_rows(p), "normalised");
  check_like(gradient, like, "gradient", dtype);
  check_contiguous(gradient, shape_of_rows(p), "gradient");
  t.normalised = normalised.data_ptr();
  t.gradient = gradient.data_ptr();
  Tensors results;
  if (weights) {
    results.push_back(empty({p.branches, p.channels, 1, 3, 3}, dtype, like));
    t.weights = results[0].data_ptr();
  }
  const OnDevice device(like);
  dispatch_dtype(like, [&](auto element) {
    using T = decltype(element);
    const int64_t parts = plan_training<T>(t);
    Tensors kept;
    if (weights) {
      kept.push_back(empty({parts, kTaps, p.channels}, sum_dtype(like), like));
      t.terms = kept[0].data_ptr();
    }
    depthwise_gradient<T>(t, device.stream());
  });
  return results;
}

// Levels without a gradient are left out of the list, so how many channels they have follows only if they are side by
// side.
void describe_gradients(GradientParams& g, const Optionals& gradients, const Tensor& like, int64_t channels) {
  STD_TORCH_CHECK(!gradients.empty() && gradients.size() <= kMaxLevels, "gradients: expected 1 to ", kMaxLevels,
                  ", got ", gradients.size());
  const Tensor* image = nullptr;
  int64_t present = 0;
  size_t gaps = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].has_value()) {
      gaps += i == 0 || gradients[i - 1].has_value();
      continue;
    }
    if (image == nullptr) image = &*gradients[i];
    check_image(*gradients[i], *image, "gradients", i);
    STD_TORCH_CHECK(gradients[i]->size(2) == image->size(2) && gradients[i]->size(3) == image->size(3),
                    indexed("gradients", i), ": expected the others' size, ", text_of(shape_of(*image)), ", got ",
                    text_of(shape_of(*gradients[i])));
    present += gradients[i]->size(1);
  }
  STD_TORCH_CHECK(image != nullptr, "gradients: expected at least one, got none");
  STD_TORCH_CHECK(gaps <= 1, "gradients: expected those that are absent side by side, got ", gaps, " gaps");
  STD_TORCH_CHECK(gaps == 0 ? present == channels : present <= channels, "gradients: expected ", channels,
                  " channels of all levels, got ", present);
  check_like(*image, like, "gradients", like.scalar_type(), "dz");
  Params& p = g.forward;
  describe_images(p, shape_of(*image), channels, "gradients");
  int64_t first = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const bool exists = gradients[i].has_value(), second = !exists && i > 0 && !gradients[i - 1].has_value();
    const int64_t own = exists ? gradients[i]->size(1) : second ? 0 : channels - present;
    if (own == 0) continue;
    if (exists) {
      g.level[p.levels].data = gradients[i]->data_ptr();
      g.level[p.levels].stride = strides_of(*gradients[i]);
    }
    add_level(p, gradients[i], own, first);
    first += own;
  }
}

void training_level_gradient(Tensor dz, Tensors depthwise, std::vector<int64_t> dilations, Optionals gradients,
                             bool add, int64_t first, int64_t branches) {
  check_branches(depthwise, dilations);
  check_group(first, branches, dilations.size());
  STD_TORCH_CHECK(dz.dim() == 3, "dz: expected 3 dimensions [branches, N * H * W, C], got ", dz.dim());
  GradientParams g{};
  Params& p = g.forward;
  describe_gradients(g, gradients, dz, dz.size(2));
  for (int64_t i = first; i < first + branches; ++i) add_branch(p, depthwise, dilations, static_cast<size_t>(i), dz);
  check_contiguous(dz, shape_of_rows(p), "dz");
  const int64_t channels = p.channels, pixels = int64_t{p.height} * p.width;
  g.inputs = dz.data_ptr();
  g.inputs_stride = {pixels * channels, 1, p.width * channels, channels};
  g.inputs_branch = p.batch * pixels * channels;
  g.add = add;
  const OnDevice device(dz);
  dispatch_dtype(dz, [&](auto element) { level_gradient<decltype(element)>(g, device.stream()); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("training_moments", TORCH_BOX(&training_moments));
  m.impl("training_normalised", TORCH_BOX(&training_normalised));
  m.impl("training_depthwise_gradient", TORCH_BOX(&training_depthwise_gradient));
  m.impl("training_level_gradient", TORCH_BOX(&training_level_gradient));
}

}  // namespace jpu::separable_pyramid
