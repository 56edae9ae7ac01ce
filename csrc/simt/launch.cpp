#include "simt/launch.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

#include "simt/block.h"

namespace r21d::simt {
namespace {

constexpr int kMaxThreads = 1024;

Report& report_of_last() {
  static Report report;
  return report;
}

void check(const Launch& wanted) {
  if (wanted.threads < 1 || wanted.threads > kMaxThreads || wanted.threads % Warp::kLanes != 0) {
    throw std::invalid_argument(
        "threads=" + std::to_string(wanted.threads) + " is not a multiple of 32 up to 1024");
  }
  if (wanted.grid.y > 65535 || wanted.grid.z > 65535) {
    throw std::invalid_argument(
        "grid=(" + std::to_string(wanted.grid.x) + ", " + std::to_string(wanted.grid.y) + ", " +
        std::to_string(wanted.grid.z) + "): y and z are at most 65535");
  }
}

// Blocks one by one, in the order that the options ask for.
void run(const Launch& wanted, Block& block, const std::function<void()>& kernel) {
  const ptx::Index3 grid = wanted.grid;
  std::vector<ptx::Index3> blocks;
  for (uint32_t z = 0; z < grid.z; ++z) {
    for (uint32_t y = 0; y < grid.y; ++y) {
      for (uint32_t x = 0; x < grid.x; ++x) {
        blocks.push_back({x, y, z});
      }
    }
  }
  if (options().order == Order::kReversed) {
    std::reverse(blocks.begin(), blocks.end());
  } else if (options().order == Order::kShuffled) {
    block.random.shuffle(blocks);
  }
  for (const ptx::Index3 index : blocks) {
    block.run(index, kernel);
    ++report_of_last().blocks;
  }
}

}  // namespace

Report launch(const Launch& wanted, const std::function<void()>& kernel) {
  // What runs is global: one launch at a time.
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static const Stacks stacks(kMaxThreads);
  check(wanted);
  Report& report = report_of_last();
  report = {};
  reset_sites();
  GlobalMemory::begin_launch(static_cast<uint32_t>(wanted.threads));
  Block block(wanted, stacks);
  try {
    run(wanted, block, kernel);
  } catch (...) {
    report.uninitialised_reads = block.shared.uninitialised_reads();
    throw;
  }
  report.uninitialised_reads = block.shared.uninitialised_reads();
  return report;
}

const Report& last_report() {
  return report_of_last();
}

}  // namespace r21d::simt
