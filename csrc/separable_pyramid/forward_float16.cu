#include "separable_pyramid/launch.h"

namespace jpu::separable_pyramid {

template void forward<float16>(Params, void*);

}  // namespace jpu::separable_pyramid
