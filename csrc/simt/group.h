// Threads that execute collective instructions together, and where they leave their operands.
#pragma once

#include <cstdint>

#include "simt/site.h"

namespace r21d::simt {

struct Thread;

struct Group {
  Thread* first;
  int size;
  int left = 0;  // have left the kernel
  // The collective at which `arrived` of them wait.
  int arrived = 0;
  const SiteRecord* site = nullptr;
  Operation operation{};
};

// Operands and results of a warp's collectives. Results stay until all threads of the warp have
// come to the next collective, which none does before it has taken its own.
struct alignas(64) Exchange {
  uint32_t word[32];  // shuffles, ballot
  uint32_t word_result[32];
  uint32_t row[32][4];  // ldmatrix: the row that each lane addresses
  uint32_t row_result[4][32];
  uint32_t a[16][8];  // mma: by rows, pairs of k
  uint32_t b[8][8];   // by pairs of k, columns
  float product[16][8];
};

}  // namespace r21d::simt
