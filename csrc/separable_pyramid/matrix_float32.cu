#include "separable_pyramid/launch_matrix.h"

namespace jpu::separable_pyramid {

template void forward_mma<float>(Params, void*);
template NormalisedSize normalised_size<float>(const Params&);
template void normalise_tiles<float>(const TwoPassParams&, int64_t, void*);
template void forward_two_pass<float>(Params, void*, int64_t, void*);

}  // namespace jpu::separable_pyramid
