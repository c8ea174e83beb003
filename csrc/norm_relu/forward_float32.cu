#include "norm_relu/launch.h"

namespace jpu::norm_relu {

template void forward<float>(Params, void*);

}  // namespace jpu::norm_relu
