// jpu_cuda::separable_pyramid, and which of its kernels serves a call; schemas stand in jpu_cuda/ops.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "separable_pyramid/arguments.h"
#include "separable_pyramid/matrix_config.h"
#include "separable_pyramid/policy.h"
#include "separable_pyramid/vectors.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace jpu::separable_pyramid {
namespace {

// The tensor's; in host execution a typical one of `arch`, or one without tensor cores for 0.
Device device_of(const Tensor& t, int64_t arch) {
#if defined(USE_CUDA)
  (void)arch;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, which, t.get_device_index());
    STD_TORCH_CHECK(error == cudaSuccess, "device ", t.get_device_index(), ": ", cudaGetErrorString(error));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrL2CacheSize)};
#else
  (void)t;
  return typical_device(static_cast<int>(arch));
#endif
}

// The call's levels and output as the tensor cores' kernels want them, and what had to be made for that.
template <class T>
class ByChannels {
 public:
  ByChannels(Params& p, const Tensors& levels, Tensor& output) : output_(output), target_(output) {
    constexpr int V = Vector<T>::kSize;
    int described = 0;
    for (const Tensor& tensor : levels) {
      if (tensor.size(1) == 0) continue;
      Level& level = p.level[described++];
      // Others are read element by element as they lie.
      if (level.channels % V != 0 || channels_in_vectors<T>(level.data, level.stride)) continue;
      copies_.push_back(empty_image(shape_of(tensor), true, tensor));
      torch::stable::copy_(copies_.back(), tensor);
      level.data = copies_.back().data_ptr();
      level.stride = strides_of(copies_.back());
    }
    if (p.outputs % V == 0 && !channels_in_vectors<T>(p.output, p.output_stride)) {
      target_ = empty_image(shape_of(output), true, output);
      p.output = target_.data_ptr();
      p.output_stride = strides_of(target_);
      copy_back_ = true;
    }
  }

  // After the launches.
  void finish() {
    if (copy_back_) torch::stable::copy_(output_, target_);
  }

 private:
  Tensors copies_;
  Tensor& output_;
  Tensor target_;
  bool copy_back_ = false;
};

// Args:
//   workspace_bytes: what the two passes may take at a time; 0 for half of the device's L2 cache.
Tensor separable_pyramid(Tensors levels, Tensors depthwise, Tensors pointwise, std::vector<int64_t> dilations,
                         Term scale, Term shift, Term out_scale, Term out_shift, bool relu, bool allow_tf32,
                         int64_t arch, std::string policy, int64_t workspace_bytes) {
  Params p = describe(levels, depthwise, pointwise, dilations, scale, shift, out_scale, out_shift, relu);
  const Tensor& first = levels[0];
  STD_TORCH_CHECK(workspace_bytes >= 0, "workspace_bytes: expected 0 or more, got ", workspace_bytes);
  Tensor output = empty_image({p.batch, int64_t{p.branches} * p.outputs, p.height, p.width}, all_channels_last(levels),
                              first);
  p.output = output.data_ptr();
  p.output_stride = strides_of(output);
  const OnDevice on_device(first);
  dispatch_dtype(first, [&](auto element) {
    using T = decltype(element);
    const Device device = device_of(first, arch);
    const Choice choice = choose(policy, device, {kElementType<T>, allow_tf32, p.outputs});
    if (output.numel() == 0) return;
    if constexpr (!std::is_same_v<T, double>) {
      if (choice.policy != Policy::kFma) {
        ByChannels<T> by_channels(p, levels, output);
        if (choice.policy == Policy::kMma) {
          forward_mma<T>(p, on_device.stream());
        } else {
          const NormalisedSize size = normalised_size<T>(p);
          const int64_t cache = workspace_bytes > 0 ? workspace_bytes : device.cache_bytes / 2;
          const int64_t fitting = tiles_at_a_time(device, cache, size.tile_bytes, shares_of(p.outputs));
          // Multiprocessors without work cost more than h that passes a small cache by.
          const int64_t least = workspace_bytes > 0 ? 1 : tiles_of_a_wave(device, shares_of(p.outputs));
          const int64_t room = std::min(std::max(fitting, least), size.tiles);
          const Tensor normalised = empty({room * size.tile_bytes}, ScalarType::Byte, first);
          forward_two_pass<T>(p, normalised.data_ptr(), room, on_device.stream());
        }
        by_channels.finish();
        return;
      }
    }
    forward<T>(p, on_device.stream());
  });
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
