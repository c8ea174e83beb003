#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void backward<float>(Params, void*);

}  // namespace jpu::upsample_concat
