#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void backward<float16>(Params, void*);

}  // namespace jpu::upsample_concat
