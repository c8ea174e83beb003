// The kernels of faulty.cu and matrix.cu, and the runtime's conversions, for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <stdexcept>
#include <utility>

#include "faulty.h"
#include "host/device_api.h"
#include "host/module.h"

namespace py = pybind11;

namespace jpu::faulty {
namespace {

std::vector<std::pair<uint32_t, int>> visitors;

// By its address, so that a test may pass any view.
struct Matrix {
  float* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;

  explicit Matrix(const py::object& object) {
    if (object.is_none()) return;
    const py::array array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array_t<float>>(array) || array.ndim() != 2 || array.strides(1) != sizeof(float)) {
      throw std::runtime_error("expected a float32 matrix whose rows are contiguous");
    }
    data = static_cast<float*>(const_cast<void*>(array.data()));
    rows = array.shape(0);
    columns = array.shape(1);
    stride = array.strides(0) / static_cast<int64_t>(sizeof(float));
  }
};

void run_arrays(const std::string& name, const py::object& input, const py::object& output, const py::object& scratch,
                int option) {
  const Matrix in(input), out(output), own(scratch);
  const Memory memory{in.data,    out.data,   own.data,   out.rows, in.columns,
                      out.columns, in.stride, out.stride, own.stride, option};
  const py::gil_scoped_release release;
  run(name, memory);
}

template <class To, class From, To (*Convert)(From)>
py::array_t<To> convert(const py::array_t<From, py::array::c_style>& from) {
  py::array_t<To> to(from.size());
  for (py::ssize_t i = 0; i < from.size(); ++i) to.mutable_data()[i] = Convert(from.data()[i]);
  return to;
}

}  // namespace

void visit(uint32_t block, int thread) { visitors.emplace_back(block, thread); }

float peek(const float* address) { return *address; }

}  // namespace jpu::faulty

PYBIND11_MODULE(_faulty, m) {
  using namespace jpu;
  host::bind_control(m);
  m.def("names", &faulty::names);
  m.def("run", &faulty::run_arrays, py::arg("name"), py::arg("input"), py::arg("output"),
        py::arg("scratch") = py::none(), py::arg("option") = 0);
  // Who visited since the last call: (block, thread), in order.
  m.def("visitors", [] { return std::exchange(faulty::visitors, {}); });
  m.def("float16_to_float", &faulty::convert<float, uint16_t, host::float16_to_float>);
  m.def("float_to_float16", &faulty::convert<uint16_t, float, host::float_to_float16>);
  m.def("bfloat16_to_float", &faulty::convert<float, uint16_t, host::bfloat16_to_float>);
  m.def("float_to_bfloat16", &faulty::convert<uint16_t, float, host::float_to_bfloat16>);
}
