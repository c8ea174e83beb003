// The Python module of the product's kernels. Importing it registers their operators for CPU tensors.
#include "host/module.h"

PYBIND11_MODULE(_host, module) { jpu::host::bind_control(module); }
