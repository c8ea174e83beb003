#include "host/runtime.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>

#include "host/device_api.h"
#include "host/execution.h"

namespace jpu::host {

namespace {

Settings current_settings;
std::vector<Record> records;
std::vector<size_t> recorders;  // where each open one began
std::mutex control;

// One launch at a time: its state is where every function of this file looks.
std::mutex launching;
Execution* execution = nullptr;

}  // namespace

Execution* running() { return execution; }

Settings settings() {
  const std::lock_guard<std::mutex> lock(control);
  return current_settings;
}

void set_settings(const Settings& settings) {
  const std::lock_guard<std::mutex> lock(control);
  current_settings = settings;
}

void open_recorder() {
  const std::lock_guard<std::mutex> lock(control);
  recorders.push_back(records.size());
}

std::vector<Record> close_recorder() {
  const std::lock_guard<std::mutex> lock(control);
  if (recorders.empty()) throw std::runtime_error("expected an open recorder, got none");
  std::vector<Record> result(records.begin() + static_cast<std::ptrdiff_t>(recorders.back()), records.end());
  recorders.pop_back();
  if (recorders.empty()) records.clear();
  return result;
}

struct Launch::State {
  std::unique_lock<std::mutex> turn;
  Execution execution;
};

Launch::Launch(const char* kernel, uint32_t blocks, int threads) : state_(new State{}) {
  state_->turn = std::unique_lock<std::mutex>(launching);
  state_->execution.kernel = kernel;
  state_->execution.blocks = blocks;
  state_->execution.thread_count = threads;
}

Launch::~Launch() {
  execution = nullptr;
  delete state_;
}

void Launch::declare(const Buffer& buffer) {
  const std::string wrong = state_->execution.shadow.declare(buffer);
  if (!wrong.empty()) throw std::runtime_error(state_->execution.kernel + ": " + wrong);
}

void Launch::execute(void (*body)(const void*), const void* argument) {
  Execution& e = state_->execution;
  e.body = body;
  e.argument = argument;
  {
    const std::lock_guard<std::mutex> lock(control);
    e.settings = current_settings;
    e.counting = !recorders.empty();
  }
  execution = &e;
  e.run();
  execution = nullptr;
  const std::lock_guard<std::mutex> lock(control);
  if (!recorders.empty()) records.push_back({e.kernel, e.blocks, e.thread_count, e.counters});
}

}  // namespace jpu::host
