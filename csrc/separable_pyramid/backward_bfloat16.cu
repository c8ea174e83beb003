#include "separable_pyramid/launch_backward.h"

namespace jpu::separable_pyramid {

template Workspace plan_gradient<bfloat16>(GradientParams&, int64_t);
template void backward<bfloat16>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
