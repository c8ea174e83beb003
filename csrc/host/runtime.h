// The control surface of host execution.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/counters.h"

namespace jpu::host {

struct Settings {
  // Order of blocks and threads: 0 for ascending, others for a random one each.
  uint64_t seed = 0;
  // Asynchronous copies take effect as late as the program's waits allow, or at once.
  bool late = true;
};

struct Record {
  std::string kernel;
  uint32_t blocks;
  int threads;
  Counters counters;
};

// Of launches that this thread of the CPU makes.
Settings settings();
void set_settings(const Settings& settings);

// Launches, of any thread, are counted while at least one recorder is open, which slows them down.
uint64_t open_recorder();
// Returns what was launched since the recorder was opened.
std::vector<Record> close_recorder(uint64_t recorder);

}  // namespace jpu::host
