#include "norm_relu/launch_rows.h"

namespace jpu::norm_relu {

template int32_t parts_of_rows<float>(int32_t, int32_t, int32_t);
template void output<float>(RowParams, void*);
template void output_sums<float>(RowParams, void*);
template void output_gradient<float>(RowParams, void*);

}  // namespace jpu::norm_relu
