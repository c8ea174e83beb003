// What bindings refuse, in the words that users read: expected and got.
#pragma once

#include <string>
#include <vector>

#include "binding/tensor.h"

namespace jpu {

inline std::string indexed(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

inline void check_device(const Tensor& t, const Tensor& like, const std::string& name, const std::string& whose) {
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), name,
                  ": expected the device of ", whose, ", index ", like.get_device_index(), ", got index ",
                  t.get_device_index());
}

// An entry of a list of images, of the first one's dtype, device and batch size.
inline void check_image(const Tensor& t, const Tensor& like, const char* name, size_t i) {
  STD_TORCH_CHECK(t.dim() == 4, name, "[", i, "]: expected 4 dimensions [N, C, H, W], got ", t.dim());
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, "[", i, "]: expected dtype ", like.scalar_type(),
                  " as ", name, "[0], got ", t.scalar_type());
  check_device(t, like, indexed(name, i), indexed(name, 0));
  STD_TORCH_CHECK(t.size(0) == like.size(0), name, "[", i, "]: expected batch size ", like.size(0), ", got ",
                  t.size(0));
  STD_TORCH_CHECK(t.size(1) <= INT32_MAX && t.size(0) <= INT32_MAX, name, "[", i,
                  "]: expected at most 2147483647 samples and channels");
}

inline void check_like(const Tensor& t, const Tensor& like, const std::string& name, ScalarType dtype,
                       const std::string& whose = "levels[0]") {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", t.scalar_type());
  check_device(t, like, name, whose);
}

inline std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::vector<int64_t> shape_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline void check_shape(const Tensor& t, const std::vector<int64_t>& expected, const std::string& name) {
  STD_TORCH_CHECK(shape_of(t) == expected, name, ": expected shape ", text_of(expected), ", got ",
                  text_of(shape_of(t)));
}

// Of this shape, and contiguous.
inline void check_contiguous(const Tensor& t, const std::vector<int64_t>& expected, const std::string& name) {
  check_shape(t, expected, name);
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor, got one of other strides");
}

// An image whose pixels lie one after the other, each with its channels; extents of one may have any stride.
inline void check_channels_last(const Tensor& t, const std::string& name) {
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(t.size(d) <= 1 || t.stride(d) == expected, name, ": expected a dense channels_last image, got stride ",
                    t.stride(d), " of dimension ", d, " where ", expected, " was expected");
    expected *= t.size(d);
  }
}

}  // namespace jpu
