// What Python may set and read: seeds, completion of asynchronous work, recording.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host/module.h"
#include "host/runtime.h"

namespace py = pybind11;

namespace jpu::host {
namespace {

py::dict to_dict(const Record& record) {
  const Counters& c = record.counters;
  py::dict counters;
  counters["global_read_bytes"] = c.global_read_bytes;
  counters["global_write_bytes"] = c.global_write_bytes;
  counters["global_read_sectors"] = c.global_read_sectors;
  counters["global_write_sectors"] = c.global_write_sectors;
  counters["distinct_read_bytes"] = c.distinct_read_bytes;
  counters["distinct_write_bytes"] = c.distinct_write_bytes;
  counters["shared_read_bytes"] = c.shared_read_bytes;
  counters["shared_write_bytes"] = c.shared_write_bytes;
  counters["shared_accesses"] = c.shared_accesses;
  counters["bank_conflicts"] = c.bank_conflicts;
  counters["barriers"] = c.barriers;
  counters["multiply_adds"] = c.multiply_adds;
  counters["matrix_multiply_adds"] = c.matrix_multiply_adds;
  counters["matrix_instructions"] = c.matrix_instructions;
  counters["matrix_loads"] = c.matrix_loads;
  counters["global_reads"] = c.global_reads;
  counters["global_writes"] = c.global_writes;
  py::dict result;
  result["kernel"] = record.kernel;
  result["blocks"] = record.blocks;
  result["threads"] = record.threads;
  result["counters"] = counters;
  return result;
}

}  // namespace

void bind_control(py::module_& module) {
  module.def("configure", [](uint64_t seed, bool late) { set_settings({seed, late}); });
  module.def("configuration", [] { return py::make_tuple(settings().seed, settings().late); });
  module.def("open_recorder", &open_recorder);
  module.def("close_recorder", [](uint64_t recorder) {
    py::list result;
    for (const Record& record : close_recorder(recorder)) result.append(to_dict(record));
    return result;
  });
}

}  // namespace jpu::host
