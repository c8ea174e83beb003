#include "separable_pyramid/launch_backward.h"

namespace jpu::separable_pyramid {

template Workspace plan_gradient<float>(GradientParams&);
template void backward<float>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
