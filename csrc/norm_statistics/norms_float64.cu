#include "norm_statistics/launch.h"

namespace jpu::norm_statistics {

template void statistics<double>(StatisticsParams, void*);
template void coefficients<double>(CoefficientsParams, void*);
template void fold<double>(FoldParams, void*);
template void pointwise_gradient<double>(PointwiseParams, void*);

}  // namespace jpu::norm_statistics
