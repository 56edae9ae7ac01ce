// Probes: small programs, one for each instruction of ptx.cuh, whose output tells what it does.
// Their inputs, and what the PTX manual says of them, are in tests/instruction_probes.py.
//
// All are one kernel. A round of a probe reads `words_in` words and writes `words_out`; the blocks
// of the grid take the rounds in turn.
#pragma once

#include "cuda/probe_table.h"
#include "cuda/ptx.cuh"

namespace r21d::cuda {
namespace probes {

using ptx::Address;
using ptx::Vec4;

// ---- where a thread is

R21D_DEVICE void indices(const uint32_t*, uint32_t* out) {
  const uint32_t thread = ptx::thread_index();
  const ptx::Index3 block = ptx::block_index();
  const ptx::Index3 grid = ptx::grid_size();
  ptx::store_global(out + 4 * thread, thread);
  ptx::store_global(out + 4 * thread + 1, block.x | grid.x << 16);
  ptx::store_global(out + 4 * thread + 2, block.y | grid.y << 16);
  ptx::store_global(out + 4 * thread + 3, block.z | grid.z << 16);
}

// ---- loads and stores

// A thread's four words, written by each width and read by the others.
R21D_DEVICE void shared_widths(const uint32_t* in, uint32_t* out) {
  const uint32_t thread = ptx::thread_index();
  const Vec4 value = ptx::load_global(reinterpret_cast<const Vec4*>(in) + thread);
  const Address mine = ptx::dynamic_shared() + thread * 64;
  out += thread * 12;

  ptx::store_shared(mine, value);
  for (uint32_t half = 0; half < 8; ++half) {
    const uint16_t read = ptx::load_shared<uint16_t>(mine + half * 2);
    ptx::store_shared(mine + 16 + half * 2, read);
  }
  for (uint32_t word = 0; word < 4; ++word) {
    const uint32_t read = ptx::load_shared<uint32_t>(mine + 16 + word * 4);
    ptx::store_global(out + word, read);
    ptx::store_shared(mine + 32 + word * 4, read);
  }
  for (uint32_t word = 0; word < 4; ++word) {
    const float read = ptx::load_shared<float>(mine + 32 + word * 4);
    ptx::store_global(reinterpret_cast<float*>(out) + 4 + word, read);
    ptx::store_shared(mine + 48 + word * 4, read);
  }
  const Vec4 read = ptx::load_shared<Vec4>(mine + 48);
  ptx::store_global(reinterpret_cast<Vec4*>(out) + 2, read);
}

R21D_DEVICE void global_widths(const uint32_t* in, uint32_t* out) {
  const uint32_t thread = ptx::thread_index();
  in += thread * 4;
  const Vec4 all = ptx::load_global(reinterpret_cast<const Vec4*>(in));
  ptx::store_global(reinterpret_cast<Vec4*>(out) + thread, all);
  for (uint32_t half = 0; half < 4; ++half) {
    const uint16_t read = ptx::load_global(reinterpret_cast<const uint16_t*>(in) + half);
    ptx::store_global(reinterpret_cast<uint16_t*>(out + 128) + thread * 4 + half, read);
  }
  ptx::store_global(out + 192 + thread, ptx::load_global(in + 2));
  const float last = ptx::load_global(reinterpret_cast<const float*>(in) + 3);
  ptx::store_global(reinterpret_cast<float*>(out) + 224 + thread, last);
}

// Two pieces of static shared memory and the dynamic one do not overlap.
R21D_DEVICE void static_shared(const uint32_t* in, uint32_t* out) {
  R21D_STATIC_SHARED(first, 256);
  R21D_STATIC_SHARED(second, 256);
  const uint32_t thread = ptx::thread_index();
  const uint32_t value = ptx::load_global(in + thread);
  const Address places[3] = {first, second, ptx::dynamic_shared()};
#pragma unroll
  for (uint32_t i = 0; i < 3; ++i) {
    ptx::store_shared(places[i] + thread * 4, value + i);
  }
  ptx::sync_threads(R21D_SITE("probe: static shared memory"));
#pragma unroll
  for (uint32_t i = 0; i < 3; ++i) {
    const uint32_t read = ptx::load_shared<uint32_t>(places[i] + (63 - thread) * 4);
    ptx::store_global(out + i * 64 + thread, read);
  }
}

// Two groups, some of whose copies are not wanted: their source is no address at all. What one
// lane has waited for, the next one reads.
R21D_DEVICE void cp_async(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const Address shared = ptx::dynamic_shared();
  const Vec4 poison = {{~0u, ~0u, ~0u, ~0u}};
  for (uint32_t group = 0; group < 2; ++group) {
    ptx::store_shared(shared + (group * 32 + lane) * 16, poison);
  }
  ptx::sync_threads(R21D_SITE("probe: poisoned"));
  for (uint32_t group = 0; group < 2; ++group) {
    const uint32_t chunk = 2 * lane + group;
    const bool wanted = ptx::load_global(in + chunk) != 0;
    const void* nowhere = reinterpret_cast<const void*>(uintptr_t{16});
    const void* from = wanted ? in + 64 + 4 * chunk : nowhere;
    ptx::cp_async16(shared + (group * 32 + lane) * 16, from, wanted);
    ptx::cp_async_commit(R21D_SITE("probe: group"));
  }
  const Address next = shared + (lane + 1) % 32 * 16;
  Vec4* rows = reinterpret_cast<Vec4*>(out);
  ptx::cp_async_wait<1>(R21D_SITE("probe: first group"));
  ptx::sync_warp(R21D_SITE("probe: first group of all"));
  ptx::store_global(rows + lane, ptx::load_shared<Vec4>(next));
  ptx::cp_async_wait<0>(R21D_SITE("probe: second group"));
  ptx::sync_warp(R21D_SITE("probe: second group of all"));
  ptx::store_global(rows + 32 + lane, ptx::load_shared<Vec4>(next + 512));
}

// ---- synchronisation

R21D_DEVICE void sync_threads(const uint32_t* in, uint32_t* out) {
  const uint32_t thread = ptx::thread_index();
  const Address shared = ptx::dynamic_shared();
  ptx::store_shared(shared + thread * 4, ptx::load_global(in + thread));
  ptx::sync_threads(R21D_SITE("probe: all have written"));
  const uint32_t opposite = ptx::load_shared<uint32_t>(shared + (127 - thread) * 4);
  ptx::sync_threads(R21D_SITE("probe: all have read"));
  ptx::store_shared(shared + thread * 4, opposite + thread);
  ptx::sync_threads(R21D_SITE("probe: all have written again"));
  const Address from = shared + (thread + 32) % 128 * 4;
  ptx::store_global(out + thread, ptx::load_shared<uint32_t>(from));
}

R21D_DEVICE void sync_warp(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const Address shared = ptx::dynamic_shared();
  ptx::store_shared(shared + lane * 4, ptx::load_global(in + lane));
  ptx::sync_warp(R21D_SITE("probe: the warp has written"));
  const Address from = shared + (31 - lane) * 4;
  ptx::store_global(out + lane, ptx::load_shared<uint32_t>(from));
}

// Warp 0 fills one buffer twice, warp 1 empties it; warp 2 has a barrier of its own.
R21D_DEVICE void sync_named(const uint32_t* in, uint32_t* out) {
  constexpr int kFull = 1;
  constexpr int kEmpty = 2;
  constexpr int kOwn = 15;
  const uint32_t lane = ptx::thread_index() % 32;
  const uint32_t warp = ptx::thread_index() / 32;
  const Address buffer = ptx::dynamic_shared();
  const uint32_t value = ptx::load_global(in + lane);
  if (warp == 0) {
    ptx::store_shared(buffer + lane * 4, value);
    ptx::arrive_named(R21D_SITE("probe: full"), kFull, 64);
    ptx::sync_named(R21D_SITE("probe: wait until empty"), kEmpty, 64);
    ptx::store_shared(buffer + lane * 4, ~value);
    ptx::arrive_named(R21D_SITE("probe: full again"), kFull, 64);
  } else if (warp == 1) {
    const Address from = buffer + (31 - lane) * 4;
    ptx::sync_named(R21D_SITE("probe: wait until full"), kFull, 64);
    ptx::store_global(out + lane, ptx::load_shared<uint32_t>(from));
    ptx::arrive_named(R21D_SITE("probe: empty"), kEmpty, 64);
    ptx::sync_named(R21D_SITE("probe: wait until full again"), kFull, 64);
    ptx::store_global(out + 32 + lane, ptx::load_shared<uint32_t>(from));
  } else {
    const Address own = buffer + 128;
    ptx::store_shared(own + lane * 4, value);
    ptx::sync_named(R21D_SITE("probe: one warp"), kOwn, 32);
    ptx::store_global(out + 64 + lane, ptx::load_shared<uint32_t>(own + (lane ^ 1) * 4));
  }
}

// ---- across a warp

R21D_DEVICE void shuffle(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const uint32_t value = ptx::load_global(in + lane);
  const int from = static_cast<int>(ptx::load_global(in + 32 + lane));
  ptx::store_global(out + lane, ptx::shuffle(R21D_SITE("probe"), value, from));
}

R21D_DEVICE void shuffle_xor(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const float value = ptx::load_global(reinterpret_cast<const float*>(in) + lane);
  for (uint32_t i = 0; i < 5; ++i) {
    const float other = ptx::shuffle_xor(R21D_SITE("probe"), value, 1 << i);
    ptx::store_global(reinterpret_cast<float*>(out) + i * 32 + lane, other);
  }
}

R21D_DEVICE void shuffle_down(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const uint32_t value = ptx::load_global(in + lane);
  for (uint32_t i = 0; i < 5; ++i) {
    ptx::store_global(out + i * 32 + lane, ptx::shuffle_down(R21D_SITE("probe"), value, 1 << i));
  }
}

R21D_DEVICE void ballot(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const bool value = ptx::load_global(in + lane) != 0;
  ptx::store_global(out + lane, ptx::ballot(R21D_SITE("probe"), value));
}

// ---- atomics: each thread adds one to its bin, as a whole and as a float32 number. The old values
// of a bin are 0, 1, 2, ... in some order, and marked.

inline constexpr uint32_t kBins = 8;

R21D_DEVICE void mark(uint32_t* out, uint32_t bin, uint32_t old, float old_float) {
  uint32_t* marks = out + 2 * kBins + bin * 128;
  ptx::store_global(marks + old, 1u);
  ptx::store_global(marks + kBins * 128 + static_cast<uint32_t>(old_float), 2u);
}

R21D_DEVICE void atomic_shared(const uint32_t* in, uint32_t* out) {
  const uint32_t thread = ptx::thread_index();
  const Address counts = ptx::dynamic_shared();
  const Address sums = counts + kBins * 4;
  if (thread < 2 * kBins) {
    ptx::store_shared(counts + thread * 4, 0u);
  }
  ptx::sync_threads(R21D_SITE("probe: bins are empty"));
  const uint32_t bin = ptx::load_global(in + thread);
  const uint32_t old = ptx::atomic_add_shared(counts + bin * 4, 1u);
  const float old_float = ptx::atomic_add_shared(sums + bin * 4, 1.0f);
  mark(out, bin, old, old_float);
  ptx::sync_threads(R21D_SITE("probe: bins are filled"));
  if (thread < 2 * kBins) {
    ptx::store_global(out + thread, ptx::load_shared<uint32_t>(counts + thread * 4));
  }
}

R21D_DEVICE void atomic_global(const uint32_t* in, uint32_t* out) {
  const uint32_t bin = ptx::load_global(in + ptx::thread_index());
  const uint32_t old = ptx::atomic_add_global(out + bin, 1u);
  const float old_float = ptx::atomic_add_global(reinterpret_cast<float*>(out) + kBins + bin, 1.0f);
  mark(out, bin, old, old_float);
}

// ---- tensor cores

// 32 rows of 16 bytes in shared memory; the address that the lane gives is that of any of them.
R21D_DEVICE Address matrix_row(const uint32_t* in) {
  const uint32_t lane = ptx::thread_index();
  const Address rows = ptx::dynamic_shared();
  ptx::store_shared(rows + lane * 16, ptx::load_global(reinterpret_cast<const Vec4*>(in) + lane));
  ptx::sync_threads(R21D_SITE("probe: rows of matrices"));
  return rows + ptx::load_global(in + 128 + lane) * 16;
}

template <int Registers>
R21D_DEVICE void store_fragment(uint32_t* out, const uint32_t (&fragment)[Registers]) {
#pragma unroll
  for (int r = 0; r < Registers; ++r) {
    ptx::store_global(out + ptx::thread_index() * Registers + r, fragment[r]);
  }
}

R21D_DEVICE void ldmatrix_x4(const uint32_t* in, uint32_t* out) {
  store_fragment(out, ptx::ldmatrix_x4(R21D_SITE("probe"), matrix_row(in)).x);
}

R21D_DEVICE void ldmatrix_x2(const uint32_t* in, uint32_t* out) {
  store_fragment(out, ptx::ldmatrix_x2(R21D_SITE("probe"), matrix_row(in)).x);
}

R21D_DEVICE void ldmatrix_x4_transposed(const uint32_t* in, uint32_t* out) {
  store_fragment(out, ptx::ldmatrix_x4_transposed(R21D_SITE("probe"), matrix_row(in)).x);
}

// Registers of a, b and d, lane by lane.
template <class T>
R21D_DEVICE void mma(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const Vec4 a = ptx::load_global(reinterpret_cast<const Vec4*>(in) + lane);
  const uint32_t b0 = ptx::load_global(in + 128 + lane * 2);
  const uint32_t b1 = ptx::load_global(in + 128 + lane * 2 + 1);
  float d[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    d[r] = ptx::load_global(reinterpret_cast<const float*>(in) + 192 + lane * 4 + r);
  }
  ptx::mma_m16n8k16<T>(R21D_SITE("probe"), d, a.x, b0, b1);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    ptx::store_global(reinterpret_cast<float*>(out) + lane * 4 + r, d[r]);
  }
}

R21D_DEVICE void mma_bfloat16(const uint32_t* in, uint32_t* out) {
  mma<ptx::Bfloat16>(in, out);
}

R21D_DEVICE void mma_float16(const uint32_t* in, uint32_t* out) {
  mma<ptx::Float16>(in, out);
}

// ---- 16-bit numbers

template <class T>
R21D_DEVICE void pack(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const float low = ptx::as_float(ptx::load_global(in + lane));
  const float high = ptx::as_float(ptx::load_global(in + 32 + lane));
  ptx::store_global(out + lane, ptx::pack2<T>(low, high));
}

template <class T>
R21D_DEVICE void unpack(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = ptx::thread_index();
  const uint32_t packed = ptx::load_global(in + lane);
  float* values = reinterpret_cast<float*>(out);
  ptx::store_global(values + lane, ptx::unpack_low<T>(packed));
  ptx::store_global(values + 32 + lane, ptx::unpack_high<T>(packed));
}

R21D_DEVICE void pack_bfloat16(const uint32_t* in, uint32_t* out) {
  pack<ptx::Bfloat16>(in, out);
}

R21D_DEVICE void pack_float16(const uint32_t* in, uint32_t* out) {
  pack<ptx::Float16>(in, out);
}

R21D_DEVICE void unpack_bfloat16(const uint32_t* in, uint32_t* out) {
  unpack<ptx::Bfloat16>(in, out);
}

R21D_DEVICE void unpack_float16(const uint32_t* in, uint32_t* out) {
  unpack<ptx::Float16>(in, out);
}

}  // namespace probes

// A template, so that every file may include it.
template <int Threads>
R21D_KERNEL(Threads, 1)
instructions_kernel(const ProbeParams p) {
  const ptx::Index3 block = ptx::block_index();
  const int first = static_cast<int>(block.x + ProbeGrid::kX * (block.y + ProbeGrid::kY * block.z));
  for (int round = first; round < p.rounds; round += ProbeGrid::kBlocks) {
    switch (static_cast<ProbeId>(p.id)) {
#define R21D_CASE(name, threads, words_in, words_out)                     \
  case ProbeId::name:                                                     \
    probes::name(p.in + round * (words_in), p.out + round * (words_out)); \
    break;
      R21D_PROBES(R21D_CASE)
#undef R21D_CASE
    }
    ptx::sync_threads(R21D_SITE("probe: shared memory is free"));
  }
}

}  // namespace r21d::cuda
