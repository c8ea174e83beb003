#include "separable_pyramid/launch_matrix.h"

namespace jpu::separable_pyramid {

extern template void normalise_tiles<bfloat16>(const TwoPassParams&, int64_t, void*);

template void forward<bfloat16, true>(Params, void*);
template void forward_mma<bfloat16, true>(Params, void*);
template void forward_two_pass<bfloat16, true>(Params, void*, int64_t, void*);

}  // namespace jpu::separable_pyramid
