#include "norm_statistics/launch.h"

namespace jpu::norm_statistics {

template void statistics<float>(StatisticsParams, void*);
template void coefficients<float>(CoefficientsParams, void*);
template void fold<float>(FoldParams, void*);
template void pointwise_gradient<float>(PointwiseParams, void*);

}  // namespace jpu::norm_statistics
