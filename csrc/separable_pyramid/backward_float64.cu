#include "separable_pyramid/launch_backward.h"

namespace jpu::separable_pyramid {

template Workspace plan_gradient<double>(GradientParams&, int64_t);
template void backward<double>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
