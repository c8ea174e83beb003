#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void backward<bfloat16>(Params, void*);

}  // namespace jpu::upsample_concat
