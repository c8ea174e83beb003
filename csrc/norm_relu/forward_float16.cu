#include "norm_relu/launch.h"

namespace jpu::norm_relu {

template void forward<float16>(Params, void*);

}  // namespace jpu::norm_relu
