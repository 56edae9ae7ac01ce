// Launching a kernel on the host:
//
//   simt::GlobalBuffer x("x", host_x, bytes);
//   simt::GlobalBuffer y("y", host_y, bytes, /*writable=*/true);
//   simt::launch(
//       {.kernel = "copy", .grid = {4, 1, 1}, .threads = 128, .dynamic_shared = 4096},
//       [&] { copy_kernel(x.pointer<float>(), y.pointer<float>()); });
//
// Kernels see global memory at its own addresses, filled from the host's when the buffer is made
// and, where writable, copied back when it goes.
#pragma once

#include <cstdint>
#include <functional>

#include "simt/global_memory.h"
#include "simt/ptx_types.h"

namespace r21d::simt {

struct Launch {
  const char* kernel;
  ptx::Index3 grid{1, 1, 1};
  int threads = 32;
  size_t dynamic_shared = 0;
  // The most that the device gives a block: 227 KB on sm_90, 163 on sm_80, 99 on sm_86 and sm_89.
  size_t shared_limit = 227 << 10;
};

struct Report {
  uint64_t blocks = 0;
  uint64_t uninitialised_reads = 0;  // of shared memory; they read NaN
};

// Runs `kernel` once a thread, under options(). Throws Fault where a kernel does what it must not,
// std::invalid_argument where the launch itself is none.
Report launch(const Launch&, const std::function<void()>& kernel);

// Of the last launch, whether it succeeded or not.
const Report& last_report();

}  // namespace r21d::simt
