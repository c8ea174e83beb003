#include "separable_pyramid/launch_matrix.h"

namespace jpu::separable_pyramid {

extern template void normalise_tiles<float>(const TwoPassParams&, int64_t, void*);

template void forward<float, true>(Params, void*);
template void forward_mma<float, true>(Params, void*);
template void forward_two_pass<float, true>(Params, void*, int64_t, void*);

}  // namespace jpu::separable_pyramid
