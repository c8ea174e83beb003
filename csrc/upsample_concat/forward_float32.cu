#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void forward<float>(Params, void*);

}  // namespace jpu::upsample_concat
