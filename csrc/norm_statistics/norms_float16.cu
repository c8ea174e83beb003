#include "norm_statistics/launch.h"

namespace jpu::norm_statistics {

template void statistics<float16>(StatisticsParams, void*);
template void coefficients<float16>(CoefficientsParams, void*);
template void fold<float16>(FoldParams, void*);
template void pointwise_gradient<float16>(PointwiseParams, void*);

}  // namespace jpu::norm_statistics
