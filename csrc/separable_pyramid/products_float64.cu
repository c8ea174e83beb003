#include "separable_pyramid/launch.h"

namespace jpu::separable_pyramid {

template void forward<double, true>(Params, void*);

}  // namespace jpu::separable_pyramid
