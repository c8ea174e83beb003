// What both experiments need on the host: checked calls, memory, tensor maps, repeated launches, lines of JSON.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.cuh"

namespace hopper {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Error with the call's name and what CUDA says.
void check(cudaError_t error, const char* what);

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) { check(cudaMalloc(&data_, bytes()), "cudaMalloc"); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { (void)cudaFree(data_); }
  T* data() const { return data_; }
  void write(const std::vector<T>& from) {
    if (static_cast<int64_t>(from.size()) != size_) throw Error("upload: expected another number of elements");
    check(cudaMemcpy(data_, from.data(), bytes(), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> read() const {
    std::vector<T> to(static_cast<size_t>(size_));
    check(cudaMemcpy(to.data(), data_, bytes(), cudaMemcpyDeviceToHost), "download");
    return to;
  }

 private:
  size_t bytes() const { return sizeof(T) * static_cast<size_t>(size_); }
  T* data_ = nullptr;
  int64_t size_;
};

// A map of bfloat16 tensors whose last dimension is contiguous; dimension 0 is that one.
struct MapShape {
  std::vector<uint64_t> sizes;
  std::vector<uint32_t> box, strides;  // of elements that a box traverses and every how manieth it takes
  bool swizzle;
};
CUtensorMap make_map(const uint16_t* tensor, const MapShape& shape);

// Where this runs and how long.
class Session {
 public:
  Session(int device, double seconds, double case_seconds, int first_case, bool check_only);
  int blocks_at_once() const { return multiprocessors_; }
  bool check_only() const { return check_only_; }
  // Whether the next case of a part is one to run; called once for each. Says so where time is up.
  bool begins(const std::string& what) const;
  Watch watch() const { return {failure_on_device_, watch_cycles_}; }
  // Waits for the device. Throws Error, which names the wait that gave up where one did.
  void finish(const char* what) const;
  void print_about() const;

  struct Samples {
    std::vector<double> cycles, milliseconds;  // of launches; cycles are those of its mean block
  };
  // Repeats a launch, after some for warming up.
  Samples time(const std::function<void()>& launch, const DeviceArray<int64_t>& clocks) const;

 private:
  int multiprocessors_ = 0;
  int64_t watch_cycles_ = 0;
  double case_seconds_;
  int first_case_;
  mutable int cases_ = 0;
  bool check_only_;
  Failure* failure_ = nullptr;
  Failure* failure_on_device_ = nullptr;
  std::string name_;
  std::chrono::steady_clock::time_point deadline_;
};

// "key": value pairs of one line; print() ends it.
class Line {
 public:
  explicit Line(const char* kind) { add("kind", kind); }
  Line& add(const char* key, const std::string& value);
  Line& add(const char* key, const char* value) { return add(key, std::string(value)); }
  Line& add(const char* key, int64_t value);
  Line& add(const char* key, int value) { return add(key, int64_t{value}); }
  Line& add(const char* key, bool value);
  Line& add(const char* key, const std::vector<double>& values);
  void print() const;

 private:
  Line& raw(const char* key, const std::string& text);
  std::string text_;
};

// Each returns whether everything that it checked was right.
bool run_single(const Session& session);
bool run_pair(const Session& session);
bool run_multicast(const Session& session);
bool run_bulk(const Session& session);
bool run_gather(const Session& session);

}  // namespace hopper
