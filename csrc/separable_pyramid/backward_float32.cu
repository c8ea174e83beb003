#include "separable_pyramid/launch_backward.h"

namespace jpu::separable_pyramid {

template Workspace plan_gradient<float>(GradientParams&, int64_t);
template void backward<float>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
