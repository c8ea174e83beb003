// For modules of their own that run other kernels (tests): the same control surface.
#pragma once

#include <pybind11/pybind11.h>

namespace jpu::host {

void bind_control(pybind11::module_& module);

}  // namespace jpu::host
