#include "separable_pyramid/launch_training.h"

namespace jpu::separable_pyramid {

template int64_t plan_training<float16>(TrainingParams&);
template void moments<float16>(const TrainingParams&, void*);
template void normalised<float16>(const TrainingParams&, void*);
template void depthwise_gradient<float16>(const TrainingParams&, void*);
template void level_gradient<float16>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
