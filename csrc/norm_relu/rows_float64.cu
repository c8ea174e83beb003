#include "norm_relu/launch_rows.h"

namespace jpu::norm_relu {

template int32_t parts_of_rows<double>(int32_t, int32_t, int32_t);
template void output<double>(RowParams, void*);
template void output_sums<double>(RowParams, void*);
template void output_gradient<double>(RowParams, void*);

}  // namespace jpu::norm_relu
