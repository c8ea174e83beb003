#include "separable_pyramid/launch_matrix.h"

namespace jpu::separable_pyramid {

extern template void normalise_tiles<float16>(const TwoPassParams&, int64_t, void*);

template void forward<float16, true>(Params, void*);
template void forward_mma<float16, true>(Params, void*);
template void forward_two_pass<float16, true>(Params, void*, int64_t, void*);

}  // namespace jpu::separable_pyramid
