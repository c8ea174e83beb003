#include "norm_relu/launch_rows.h"

namespace jpu::norm_relu {

template int32_t parts_of_rows<bfloat16>(int32_t, int32_t, int32_t);
template void output<bfloat16>(RowParams, void*);
template void output_sums<bfloat16>(RowParams, void*);
template void output_gradient<bfloat16>(RowParams, void*);

}  // namespace jpu::norm_relu
