// Instructions that a warp executes together: all lanes must come to the same one at the same site.
// Each lane leaves its operands and lets the next one run; the last to come computes for all.
//
// What a lane does is inline in the kernels: a call's return would be mispredicted in every lane,
// because another lane has made the same call since.
#pragma once

#include <cstdint>
#include <cstring>

#include "simt/block.h"
#include "simt/ptx_types.h"
#include "simt/site.h"

namespace r21d::simt {

[[noreturn, gnu::cold]] void diverges(const Group&, Operation, const SiteRecord&);
[[noreturn, gnu::cold]] void misses(const Group&, Operation, const SiteRecord&);

// Returns once all of the group have come; the last to come calls complete(warp) for all. The
// group's threads go on in their turns.
template <class Members>
[[gnu::always_inline]] inline void meet(
    Members& group, Operation operation, SiteRecord& site, void (*complete)(Members&)) {
  if (group.arrived == 0) {
    group.operation = operation;
    group.site = &site;
  } else if (group.operation != operation || group.site != &site) [[unlikely]] {
    diverges(group, operation, site);
  }
  if (group.left > 0) [[unlikely]] {
    misses(group, operation, site);
  }
  if (++group.arrived < group.size) {
    wait_in(operation, site);
    return;
  }
  group.arrived = 0;
  complete(group);
  for (int i = 0; i < group.size; i += Warp::kLanes) {
    group.first[i].warp->ready = ~uint32_t{0};
  }
}

void complete_shuffle(Warp&);
void complete_ballot(Warp&);
void complete_sync(Warp&);
void complete_ldmatrix(Warp&);
void complete_ldmatrix_transposed(Warp&);
void complete_mma(Warp&);

// The value that lane `source` gives; of 4 bytes.
inline uint32_t shuffle(SiteRecord& site, Operation operation, uint32_t value, uint32_t source) {
  enter(site, operation);
  Warp& warp = *current->warp;
  warp.exchange.word[current->lane] = value;
  meet(warp, operation, site, complete_shuffle);
  return warp.exchange.word_result[source];
}

inline uint32_t ballot(SiteRecord& site, bool value) {
  enter(site, Operation::kBallot);
  Warp& warp = *current->warp;
  warp.exchange.word[current->lane] = value ? 1u << current->lane : 0;
  meet(warp, Operation::kBallot, site, complete_ballot);
  return warp.exchange.word_result[0];
}

// A barrier of the warp, which orders its accesses to memory; no other collective does.
inline void sync_warp(SiteRecord& site) {
  if (enter(site, Operation::kSyncWarp) != Perturbation::kRemoved) {
    meet(*current->warp, Operation::kSyncWarp, site, complete_sync);
  }
}

// The row of 16 bytes that this lane addresses has been read; word i of the result is this lane's
// of matrix i of four, or of two.
[[gnu::always_inline]] inline ptx::Fragment4 ldmatrix(
    SiteRecord& site, Operation operation, const void* row) {
  enter(site, operation);
  Warp& warp = *current->warp;
  const uint32_t lane = current->lane;
  std::memcpy(warp.exchange.row[lane], row, sizeof(warp.exchange.row[lane]));
  const bool transposed = operation == Operation::kLdmatrixX4Transposed;
  meet(warp, operation, site, transposed ? complete_ldmatrix_transposed : complete_ldmatrix);
  const auto& result = warp.exchange.row_result;
  return {{result[0][lane], result[1][lane], result[2][lane], result[3][lane]}};
}

// d += a·b. Products are exact in float32; their sums are rounded in no defined order, here by
// rising k and then to d.
[[gnu::always_inline]] inline void mma_m16n8k16(
    SiteRecord& site,
    Operation operation,
    float (&d)[4],
    const uint32_t (&a)[4],
    uint32_t b0,
    uint32_t b1) {
  enter(site, operation);
  Warp& warp = *current->warp;
  Exchange& exchange = warp.exchange;
  // PTX ISA 9.7.14.5.8: lane l holds rows l / 4 and l / 4 + 8 of a and d, column l / 4 of b, and
  // of each a pair at 2 · (l % 4).
  const uint32_t group = current->lane / 4;
  const uint32_t pair = current->lane % 4;
  exchange.a[group][pair] = a[0];
  exchange.a[group + 8][pair] = a[1];
  exchange.a[group][pair + 4] = a[2];
  exchange.a[group + 8][pair + 4] = a[3];
  exchange.b[pair][group] = b0;
  exchange.b[pair + 4][group] = b1;
  meet(warp, operation, site, complete_mma);
  d[0] += exchange.product[group][2 * pair];
  d[1] += exchange.product[group][2 * pair + 1];
  d[2] += exchange.product[group + 8][2 * pair];
  d[3] += exchange.product[group + 8][2 * pair + 1];
}

}  // namespace r21d::simt
