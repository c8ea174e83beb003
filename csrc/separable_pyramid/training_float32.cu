#include "separable_pyramid/launch_training.h"

namespace jpu::separable_pyramid {

template int64_t plan_training<float>(TrainingParams&);
template void moments<float>(const TrainingParams&, void*);
template void normalised<float>(const TrainingParams&, void*);
template void depthwise_gradient<float>(const TrainingParams&, void*);
template void level_gradient<float>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
