// Launches that serve a list: the blocks of each entry follow those of the one before.
#pragma once

#include "device/thread.h"

namespace jpu {

// Which entry a block is of; `first` is the member that holds the number of an entry's first block.
template <class Entry>
JPU_DEVICE int entry_of(uint32_t block, const Entry* entries, int count, uint32_t Entry::*first) {
  int index = 0;
  while (index + 1 < count && block >= entries[index + 1].*first) ++index;
  return index;
}

// Of this block.
template <class Entry>
JPU_DEVICE int entry_of_block(const Entry* entries, int count, uint32_t Entry::*first) {
  return entry_of(block_index(), entries, count, first);
}

}  // namespace jpu
