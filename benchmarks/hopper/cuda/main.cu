// hopper PART [--check] [--seconds S] [--case-seconds S] [--first N] [--device N]
//
// PART is single, pair, multicast (pipes.cuh), bulk or gather (copies.cuh). Prints a line of JSON for each case as soon
// as it is done. --check only compares with the host and times nothing; no case begins after --seconds; --first passes
// over so many. Exit codes: 0 all right, 1 a case was wrong, 2 nothing could be run here, 3 a call or a kernel failed,
// after which nothing more can be run in this process.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "host.h"

namespace {

struct Part {
  const char* name;
  bool (*run)(const hopper::Session&);
};

constexpr Part kParts[] = {
    {"single", hopper::run_single}, {"pair", hopper::run_pair},     {"multicast", hopper::run_multicast},
    {"bulk", hopper::run_bulk},     {"gather", hopper::run_gather},
};

struct Options {
  const Part* part = nullptr;
  bool check_only = false;
  double seconds = 30, case_seconds = 0.2;
  int first = 0, device = 0;
};

bool read_number(const char* text, double& value) {
  char* end = nullptr;
  value = std::strtod(text, &end);
  return end != text && *end == '\0' && value >= 0;
}

bool read(int count, char** arguments, Options& options) {
  for (int i = 1; i < count; ++i) {
    const char* text = arguments[i];
    double value = 0;
    if (std::strcmp(text, "--check") == 0) {
      options.check_only = true;
    } else if (text[0] == '-') {
      if (++i == count || !read_number(arguments[i], value)) return false;
      if (std::strcmp(text, "--seconds") == 0) {
        options.seconds = value;
      } else if (std::strcmp(text, "--case-seconds") == 0) {
        options.case_seconds = value;
      } else if (std::strcmp(text, "--first") == 0) {
        options.first = static_cast<int>(value);
      } else if (std::strcmp(text, "--device") == 0) {
        options.device = static_cast<int>(value);
      } else {
        return false;
      }
    } else {
      for (const Part& part : kParts) {
        if (std::strcmp(text, part.name) == 0) options.part = &part;
      }
      if (options.part == nullptr) return false;
    }
  }
  return options.part != nullptr;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  if (!read(count, arguments, options)) {
    std::fprintf(stderr, "expected: hopper single|pair|multicast|bulk|gather [--check] [--seconds S] "
                         "[--case-seconds S] [--first N] [--device N]\n");
    return 2;
  }
  int devices = 0, major = 0, minor = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || options.device >= devices) {
    std::fprintf(stderr, "expected CUDA device %d, got %d devices (%s)\n", options.device, devices,
                 cudaGetErrorString(error));
    return 2;
  }
  (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device);
  (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, options.device);
  if (major != 9 || minor != 0) {
    std::fprintf(stderr, "expected a device of compute capability 9.0, got %d.%d\n", major, minor);
    return 2;
  }
  try {
    const hopper::Session session(options.device, options.seconds, options.case_seconds, options.first,
                                  options.check_only);
    session.print_about();
    return options.part->run(session) ? 0 : 1;
  } catch (const std::exception& failure) {
    hopper::Line("failed").add("message", failure.what()).print();
    return 3;
  }
}
