#include "host/runtime.h"

#include <map>
#include <mutex>
#include <stdexcept>

#include "host/device_api.h"
#include "host/execution.h"

namespace jpu::host {

namespace {

thread_local Settings current_settings;
std::vector<Record> records;
std::map<uint64_t, size_t> recorders;  // where each open one began in records
uint64_t next_recorder = 0;
std::mutex control;

std::mutex launching;  // one launch at a time: stacks of device threads are shared

}  // namespace

Settings settings() { return current_settings; }

void set_settings(const Settings& settings) { current_settings = settings; }

uint64_t open_recorder() {
  const std::lock_guard<std::mutex> lock(control);
  recorders.emplace(next_recorder, records.size());
  return next_recorder++;
}

std::vector<Record> close_recorder(uint64_t recorder) {
  const std::lock_guard<std::mutex> lock(control);
  const auto open = recorders.find(recorder);
  if (open == recorders.end()) throw std::runtime_error("expected an open recorder, got one that is closed");
  std::vector<Record> result(records.begin() + static_cast<std::ptrdiff_t>(open->second), records.end());
  recorders.erase(open);
  if (recorders.empty()) records.clear();
  return result;
}

struct Launch::State {
  std::unique_lock<std::mutex> turn;
  Execution execution;
};

Launch::Launch(const char* kernel, uint32_t blocks, int threads, int shared_bytes) : state_(new State{}) {
  state_->turn = std::unique_lock<std::mutex>(launching);
  state_->execution.kernel = kernel;
  state_->execution.blocks = blocks;
  state_->execution.thread_count = threads;
  state_->execution.launched_bytes = shared_bytes;
}

Launch::~Launch() { delete state_; }

void Launch::declare(const Buffer& buffer) {
  const std::string wrong = state_->execution.shadow.declare(buffer);
  if (!wrong.empty()) throw std::runtime_error(state_->execution.kernel + ": " + wrong);
}

void Launch::execute(void (*body)(const void*), const void* argument) {
  Execution& e = state_->execution;
  e.body = body;
  e.argument = argument;
  e.settings = current_settings;
  {
    const std::lock_guard<std::mutex> lock(control);
    e.counting = !recorders.empty();
  }
  struct Current {
    explicit Current(Execution* e) { current_execution = e; }
    ~Current() { current_execution = nullptr; }  // also when a fault is thrown
  };
  {
    const Current current(&e);
    e.run();
  }
  const std::lock_guard<std::mutex> lock(control);
  if (e.counting && !recorders.empty()) records.push_back({e.kernel, e.blocks, e.thread_count, e.counters});
}

}  // namespace jpu::host
