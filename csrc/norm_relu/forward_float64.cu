#include "norm_relu/launch.h"

namespace jpu::norm_relu {

template void forward<double>(Params, void*);

}  // namespace jpu::norm_relu
