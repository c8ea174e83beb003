#include "host.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace hopper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kWatchSeconds = 2.0;
// By Failure::name: enum Wait, then kTileFull.
const char* const kWaits[] = {"nothing",            "weights to be full",  "weights to be empty",  "inputs to be full",
                              "inputs to be empty", "operands to be full", "operands to be empty", "tiles to be full"};

decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
        "cudaGetDriverEntryPointByVersion");
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    throw Error("driver: expected cuTensorMapEncodeTiled of CUDA 12.0, got none (" + std::to_string(result) + ")");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string quoted(const std::string& text) {
  std::string result(1, '"');
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    result += static_cast<unsigned char>(letter) < ' ' ? ' ' : letter;
  }
  result += '"';
  return result;
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

CUtensorMap make_map(const uint16_t* tensor, const MapShape& shape) {
  static const auto encode = find_encoder();
  std::vector<cuuint64_t> pitches;  // in bytes, of all dimensions but the first
  uint64_t pitch = 2;
  for (size_t i = 0; i + 1 < shape.sizes.size(); ++i) pitches.push_back(pitch *= shape.sizes[i]);
  const std::vector<cuuint64_t> sizes(shape.sizes.begin(), shape.sizes.end());
  CUtensorMap map{};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(sizes.size()),
             const_cast<uint16_t*>(tensor), sizes.data(), pitches.data(), shape.box.data(), shape.strides.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::string text = "cuTensorMapEncodeTiled: error " + std::to_string(result) + " for a box of";
    for (size_t i = 0; i < shape.box.size(); ++i) {
      text += ' ';
      text += std::to_string(shape.box[i]) + "/" + std::to_string(shape.strides[i]);
    }
    throw Error(text);
  }
  return map;
}

Session::Session(int device, double seconds, double case_seconds, int first_case, bool check_only)
    : case_seconds_(case_seconds), first_case_(first_case), check_only_(check_only) {
  deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  check(cudaSetDevice(device), "cudaSetDevice");
  cudaDeviceProp about{};
  check(cudaGetDeviceProperties(&about, device), "cudaGetDeviceProperties");
  name_ = about.name;
  multiprocessors_ = about.multiProcessorCount;
  int kilohertz = 0;
  check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device), "cudaDeviceGetAttribute");
  watch_cycles_ = static_cast<int64_t>(kWatchSeconds * 1000.0 * std::max(kilohertz, 1000000));
  check(cudaHostAlloc(&failure_, sizeof(Failure), cudaHostAllocMapped), "cudaHostAlloc");
  *failure_ = Failure{};
  check(cudaHostGetDevicePointer(&failure_on_device_, failure_, 0), "cudaHostGetDevicePointer");
}

bool Session::begins(const std::string& what) const {
  if (cases_++ < first_case_) return false;
  if (Clock::now() < deadline_) return true;
  Line("skipped").add("what", what).print();
  return false;
}

void Session::finish(const char* what) const {
  cudaError_t error = cudaGetLastError();  // of the launch
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  const volatile Failure* failure = failure_;
  if (failure->name != 0) {
    const char* name = failure->name < std::size(kWaits) ? kWaits[failure->name] : "something";
    char text[256];
    std::snprintf(text, sizeof text, "%s: waited %g s for %s in block %u, thread %u, step %u", what, kWatchSeconds,
                  name, failure->block, failure->thread, failure->step);
    throw Error(text);
  }
  check(error, what);
}

void Session::print_about() const {
  Line("about").add("device", name_).add("multiprocessors", multiprocessors_).print();
}

Session::Samples Session::time(const std::function<void()>& launch, const DeviceArray<int64_t>& clocks) const {
  constexpr size_t kFewest = 5, kMost = 400;
  constexpr double kWarmUp = 0.3;
  cudaEvent_t begin{}, end{};
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  Samples samples;
  const auto start = Clock::now();
  while (samples.cycles.size() < kFewest || (samples.cycles.size() < kMost && seconds_since(start) < case_seconds_)) {
    check(cudaEventRecord(begin), "cudaEventRecord");
    launch();
    check(cudaEventRecord(end), "cudaEventRecord");
    finish("timed launch");
    if (seconds_since(start) < kWarmUp * case_seconds_) continue;
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    const std::vector<int64_t> cycles = clocks.read();
    samples.milliseconds.push_back(milliseconds);
    samples.cycles.push_back(std::accumulate(cycles.begin(), cycles.end(), 0.0) / static_cast<double>(cycles.size()));
  }
  check(cudaEventDestroy(begin), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  return samples;
}

Line& Line::raw(const char* key, const std::string& text) {
  text_ += text_.empty() ? "{" : ", ";
  text_ += quoted(key);
  text_ += ": ";
  text_ += text;
  return *this;
}

Line& Line::add(const char* key, const std::string& value) { return raw(key, quoted(value)); }
Line& Line::add(const char* key, int64_t value) { return raw(key, std::to_string(value)); }
Line& Line::add(const char* key, bool value) { return raw(key, value ? "true" : "false"); }

Line& Line::add(const char* key, const std::vector<double>& values) {
  std::string text;
  for (const double value : values) {
    char number[32];
    std::snprintf(number, sizeof number, "%s%.7g", text.empty() ? "[" : ", ", value);
    text += number;
  }
  return raw(key, text.empty() ? "[]" : text + "]");
}

void Line::print() const {
  std::printf("%s}\n", text_.c_str());
  std::fflush(stdout);
}

}  // namespace hopper
