#include "separable_pyramid/launch.h"

namespace jpu::separable_pyramid {

template void forward<double>(Params, void*);

}  // namespace jpu::separable_pyramid
