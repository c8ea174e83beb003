// jpu_cuda::training_output, training_output_sums and training_output_gradient; their schemas stand in jpu_cuda/ops.
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "norm_relu/rows.h"

namespace jpu::norm_relu {
namespace {

// [sets, rows, branches, channels of a branch] of q.
void check_terms(const Tensor& t, const Tensor& q, const char* name, int64_t rows) {
  check_like(t, q, name, sum_dtype(q), "q");
  STD_TORCH_CHECK(t.dim() == 4 && t.size(1) == rows && (t.size(0) == 1 || t.size(0) == q.size(0)), name,
                  ": expected shape [1 or ", q.size(0), ", ", rows, ", D, O], got ", text_of(shape_of(t)));
  const int64_t branches = t.size(2), width = t.size(3);
  STD_TORCH_CHECK(branches >= 1 && width >= 1 && branches * width == q.size(1), name, ": expected terms of ", q.size(1),
                  " channels, got ", branches, " branches of ", width);
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor, got one of other strides");
}

// All but the result and coefficients.
//
// Args:
//   gradient: null for output.
RowParams describe(const Tensor* gradient, const Tensor& q, const Tensor& statistics) {
  STD_TORCH_CHECK(q.dim() == 4, "q: expected 4 dimensions [N, C, H, W], got ", q.dim());
  const int64_t images = q.size(0), channels = q.size(1), height = q.size(2), width = q.size(3);
  STD_TORCH_CHECK(images <= INT32_MAX && channels <= INT32_MAX, "q: expected at most 2147483647 samples and channels");
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= INT32_MAX / width,
                  "q: expected 1 to 2147483647 pixels, got ", height, " and ", width, " a side");
  check_channels_last(q, "q");
  if (gradient != nullptr) {
    check_like(*gradient, q, "gradient", q.scalar_type(), "q");
    check_shape(*gradient, shape_of(q), "gradient");
    check_channels_last(*gradient, "gradient");
  }
  check_terms(statistics, q, "statistics", kStatistics);
  RowParams p{};
  p.gradient = gradient != nullptr ? gradient->data_ptr() : nullptr;
  p.q = q.data_ptr();
  p.statistics = statistics.data_ptr();
  p.images = static_cast<int32_t>(images);
  p.pixels = static_cast<int32_t>(height * width);
  p.sets = static_cast<int32_t>(statistics.size(0));
  p.pitch = p.channels = static_cast<int32_t>(channels);
  p.width = static_cast<int32_t>(statistics.size(3));
  return p;
}

Tensor training_output(Tensor q, Tensor statistics) {
  RowParams p = describe(nullptr, q, statistics);
  Tensor out = empty_image(shape_of(q), true, q);
  p.out = out.data_ptr();
  p.width = p.pitch;  // rows stay whole
  if (p.images == 0) return out;
  const OnDevice device(q);
  dispatch_dtype(q, [&](auto element) { output<decltype(element)>(p, device.stream()); });
  return out;
}

Tensor training_output_sums(Tensor gradient, Tensor q, Tensor statistics) {
  RowParams p = describe(&gradient, q, statistics);
  dispatch_dtype(q, [&](auto element) { p.parts = parts_of_rows<decltype(element)>(p.images, p.pixels, p.channels); });
  Tensor sums = empty({p.images, p.parts, kSums, statistics.size(2), statistics.size(3)}, sum_dtype(q), q);
  p.out = sums.data_ptr();
  p.width = p.pitch;
  if (p.images == 0) return sums;
  const OnDevice device(q);
  dispatch_dtype(q, [&](auto element) { output_sums<decltype(element)>(p, device.stream()); });
  return sums;
}

Tensor training_output_gradient(Tensor gradient, Tensor q, Tensor statistics, Tensor coefficients, int64_t first,
                                int64_t branches) {
  RowParams p = describe(&gradient, q, statistics);
  check_terms(coefficients, q, "coefficients", kCoefficients);
  const int64_t sets = statistics.size(0), all = statistics.size(2), width = statistics.size(3);
  check_shape(coefficients, {sets, kCoefficients, all, width}, "coefficients");
  STD_TORCH_CHECK(branches >= 1 && first >= 0 && first < all && branches <= all - first,
                  "branches: expected 1 or more of ", all, ", got ", branches, " from ", first);
  Tensor out = empty({branches, q.size(0) * q.size(2) * q.size(3), width}, q.scalar_type(), q);
  p.coefficients = coefficients.data_ptr();
  p.out = out.data_ptr();
  p.first = static_cast<int32_t>(first * width);
  p.channels = static_cast<int32_t>(branches * width);
  if (p.images == 0) return out;
  const OnDevice device(q);
  dispatch_dtype(q, [&](auto element) { output_gradient<decltype(element)>(p, device.stream()); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("training_output", TORCH_BOX(&training_output));
  m.impl("training_output_sums", TORCH_BOX(&training_output_sums));
  m.impl("training_output_gradient", TORCH_BOX(&training_output_gradient));
}

}  // namespace jpu::norm_relu
