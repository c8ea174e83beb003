#include "norm_statistics/launch.h"

namespace jpu::norm_statistics {

template void statistics<bfloat16>(StatisticsParams, void*);
template void coefficients<bfloat16>(CoefficientsParams, void*);
template void fold<bfloat16>(FoldParams, void*);
template void pointwise_gradient<bfloat16>(PointwiseParams, void*);

}  // namespace jpu::norm_statistics
