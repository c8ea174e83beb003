#include "upsample_concat/launch.h"

namespace jpu::upsample_concat {

template void backward<double>(Params, void*);

}  // namespace jpu::upsample_concat
