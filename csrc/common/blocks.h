// Launches that serve a list: the blocks of each entry follow those of the one before.
#pragma once

#include "device/thread.h"

namespace jpu {

// Which entry this block is of; `first` is the member that holds the number of an entry's first block.
template <class Entry>
JPU_DEVICE int entry_of_block(const Entry* entries, int count, uint32_t Entry::*first) {
  int index = 0;
  while (index + 1 < count && block_index() >= entries[index + 1].*first) ++index;
  return index;
}

}  // namespace jpu
