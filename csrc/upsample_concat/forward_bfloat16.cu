#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void forward<bfloat16>(Params, void*);

}  // namespace jpu::upsample_concat
