#include "simt/collectives.h"

#include <string>

#include "simt/matrix.h"

namespace r21d::simt {

void diverges(const Group& group, Operation operation, const SiteRecord& site) {
  fail(
      "divergent collective",
      site_id(site),
      "comes to " + std::string(operation_name(operation)) + " while threads of its warp wait in " +
          operation_name(group.operation) + " at " + site_id(*group.site));
}

void misses(const Group& group, Operation operation, const SiteRecord& site) {
  const Thread* gone = group.first;
  while (!gone->left) {
    ++gone;
  }
  fail(
      "divergent collective",
      site_id(site),
      "comes to " + std::string(operation_name(operation)) + ", but thread " +
          std::to_string(gone->id) + " of its warp has left the kernel");
}

void complete_shuffle(Warp& warp) {
  std::memcpy(warp.exchange.word_result, warp.exchange.word, sizeof(warp.exchange.word));
}

void complete_ballot(Warp& warp) {
  uint32_t bits = 0;
  for (const uint32_t bit : warp.exchange.word) {
    bits |= bit;
  }
  warp.exchange.word_result[0] = bits;
}

void complete_sync(Warp& warp) {
  Join join;
  for (int lane = 0; lane < Warp::kLanes; ++lane) {
    join.add(warp.first[lane]);
  }
  const Knowledge known = join.take();
  for (int lane = 0; lane < Warp::kLanes; ++lane) {
    warp.first[lane].known = known;
  }
}

// Lane l gets word l % 4 of row l / 4: the eight rows of a matrix one after the other.
void complete_ldmatrix(Warp& warp) {
  std::memcpy(warp.exchange.row_result, warp.exchange.row, sizeof(warp.exchange.row));
}

void complete_ldmatrix_transposed(Warp& warp) {
  transpose_matrices(warp.exchange.row, warp.exchange.row_result);
}

void complete_mma(Warp& warp) {
  Exchange& exchange = warp.exchange;
  if (warp.operation == Operation::kMmaBfloat16) {
    multiply_bfloat16(exchange.a, exchange.b, exchange.product);
  } else {
    multiply_float16(exchange.a, exchange.b, exchange.product);
  }
}

}  // namespace r21d::simt
