#include "separable_pyramid/launch_training.h"

namespace jpu::separable_pyramid {

template int64_t plan_training<double>(TrainingParams&);
template void moments<double>(const TrainingParams&, void*);
template void normalised<double>(const TrainingParams&, void*);
template void depthwise_gradient<double>(const TrainingParams&, void*);
template void level_gradient<double>(GradientParams, void*);

}  // namespace jpu::separable_pyramid
