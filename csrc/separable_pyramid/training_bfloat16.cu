#include "separable_pyramid/launch_training.h"

namespace jpu::separable_pyramid {

template int64_t plan_training<bfloat16>(TrainingParams&);
template void moments<bfloat16>(const TrainingParams&, void*);
template void normalised<bfloat16>(const TrainingParams&, void*);
template void depthwise_gradient<bfloat16>(const TrainingParams&, void*);
template void level_gradient<bfloat16>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
