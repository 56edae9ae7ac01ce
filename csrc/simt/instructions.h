// cuda/ptx.cuh on the host: the same names, simulated. Included by it alone.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "simt/block.h"
#include "simt/collectives.h"
#include "simt/matrix.h"
#include "simt/ptx_types.h"
#include "simt/site.h"

#define R21D_DEVICE inline
#define R21D_KERNEL(threads, blocks) inline void
#define R21D_STATIC_SHARED(name, bytes)                                    \
  static constinit ::r21d::simt::StaticShared name##_record{#name, bytes}; \
  const ::r21d::ptx::Address name = ::r21d::ptx::static_shared(name##_record)

namespace r21d::ptx {

// Where in the kernel an instruction stands, for the report of a fault.
using Where = std::source_location;

inline uint32_t thread_index() {
  return simt::current->id;
}

inline Index3 block_index() {
  return simt::current->block->index;
}

inline Index3 grid_size() {
  return simt::current->block->launch.grid;
}

// ---- shared memory

inline simt::SharedMemory& shared_memory() {
  return simt::current->block->shared;
}

inline Address dynamic_shared() {
  return shared_memory().dynamic();
}

inline Address static_shared(const simt::StaticShared& record) {
  return shared_memory().static_piece(record);
}

// What the checks of races tell apart.
template <class T>
inline constexpr bool kIsWidth =
    sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16;

template <class T>
T load_shared(Address at, Where where = Where::current()) {
  static_assert(kIsWidth<T>);
  T value;
  std::memcpy(&value, shared_memory().read(at, sizeof(T), where), sizeof(T));
  return value;
}

namespace detail {

template <class T>
void store_shared(Address at, const T& value, const Where& where) {
  std::memcpy(shared_memory().write(at, sizeof(T), where), &value, sizeof(T));
}

// atom.add: the old value.
template <class T>
T add_to(void* at, T value) {
  T old;
  std::memcpy(&old, at, sizeof(T));
  value += old;
  std::memcpy(at, &value, sizeof(T));
  return old;
}

}  // namespace detail

inline void store_shared(Address at, uint16_t value, Where where = Where::current()) {
  detail::store_shared(at, value, where);
}

inline void store_shared(Address at, uint32_t value, Where where = Where::current()) {
  detail::store_shared(at, value, where);
}

inline void store_shared(Address at, float value, Where where = Where::current()) {
  detail::store_shared(at, value, where);
}

inline void store_shared(Address at, const Vec2& value, Where where = Where::current()) {
  detail::store_shared(at, value, where);
}

inline void store_shared(Address at, const Vec4& value, Where where = Where::current()) {
  detail::store_shared(at, value, where);
}

// ---- global memory

template <class T>
T load_global(const T* at, Where where = Where::current()) {
  static_assert(kIsWidth<T>);
  simt::GlobalMemory::read(at, sizeof(T), where);
  return *at;
}

template <class T>
void store_global(T* at, const T& value, Where where = Where::current()) {
  static_assert(kIsWidth<T>);
  simt::GlobalMemory::write(at, sizeof(T), where);
  *at = value;
}

// ---- asynchronous copies

inline void cp_async16(Address to, const void* from, bool wanted, Where where = Where::current()) {
  if (wanted) {
    simt::GlobalMemory::read(from, 16, where);
  }
  shared_memory().begin_copy(to, where);
  simt::current->copies.issue(*simt::current->block, to, wanted ? from : nullptr);
}

inline void cp_async_commit(Site site) {
  using simt::Operation;
  if (simt::enter(*site.record, Operation::kCommit) != simt::Perturbation::kRemoved) {
    simt::current->copies.commit();
  }
}

template <int Pending>
void cp_async_wait(Site site) {
  const simt::Perturbation perturbation = simt::enter(*site.record, simt::Operation::kWait);
  if (perturbation != simt::Perturbation::kRemoved) {
    const size_t later = perturbation == simt::Perturbation::kOneLater ? 1 : 0;
    simt::current->copies.wait(*simt::current->block, *simt::current, Pending + later);
  }
}

// ---- synchronisation

inline void sync_threads(Site site) {
  using simt::Operation;
  if (simt::enter(*site.record, Operation::kSyncThreads) != simt::Perturbation::kRemoved) {
    simt::current->block->barriers.sync_threads(*site.record);
  }
}

inline void sync_warp(Site site) {
  simt::sync_warp(*site.record);
}

inline void sync_named(Site site, int id, int threads) {
  using simt::Operation;
  if (simt::enter(*site.record, Operation::kSyncNamed) != simt::Perturbation::kRemoved) {
    simt::current->block->barriers.sync(*site.record, id, threads);
  }
}

inline void arrive_named(Site site, int id, int threads) {
  using simt::Operation;
  if (simt::enter(*site.record, Operation::kArriveNamed) != simt::Perturbation::kRemoved) {
    simt::current->block->barriers.arrive(*site.record, id, threads);
  }
}

// ---- across a warp; T is of 4 bytes

template <class T>
[[gnu::always_inline]] inline T shuffle(Site site, T value, int lane) {
  return std::bit_cast<T>(simt::shuffle(
      *site.record,
      simt::Operation::kShuffle,
      std::bit_cast<uint32_t>(value),
      static_cast<uint32_t>(lane) % 32));
}

template <class T>
[[gnu::always_inline]] inline T shuffle_xor(Site site, T value, int mask) {
  const uint32_t lane = simt::current->lane;
  const uint32_t source = lane ^ static_cast<uint32_t>(mask);
  return std::bit_cast<T>(simt::shuffle(
      *site.record,
      simt::Operation::kShuffleXor,
      std::bit_cast<uint32_t>(value),
      source < 32 ? source : lane));
}

template <class T>
[[gnu::always_inline]] inline T shuffle_down(Site site, T value, int by) {
  const uint32_t lane = simt::current->lane;
  const uint32_t source = lane + static_cast<uint32_t>(by);
  return std::bit_cast<T>(simt::shuffle(
      *site.record,
      simt::Operation::kShuffleDown,
      std::bit_cast<uint32_t>(value),
      source < 32 ? source : lane));
}

inline uint32_t ballot(Site site, bool value) {
  return simt::ballot(*site.record, value);
}

// ---- atomics; T is of 4 bytes

template <class T>
T atomic_add_global(T* at, T value, Where where = Where::current()) {
  static_assert(sizeof(T) == 4);
  simt::GlobalMemory::atomic(at, where);
  return detail::add_to(at, value);
}

inline float atomic_add_shared(Address at, float value, Where where = Where::current()) {
  return detail::add_to(shared_memory().atomic(at, where), value);
}

inline uint32_t atomic_add_shared(Address at, uint32_t value, Where where = Where::current()) {
  return detail::add_to(shared_memory().atomic(at, where), value);
}

// ---- tensor cores

[[gnu::always_inline]] inline Fragment4 ldmatrix_x4(
    Site site, Address row, Where where = Where::current()) {
  const void* values = shared_memory().read(row, 16, where);
  return simt::ldmatrix(*site.record, simt::Operation::kLdmatrixX4, values);
}

[[gnu::always_inline]] inline Fragment2 ldmatrix_x2(
    Site site, Address row, Where where = Where::current()) {
  static constexpr Vec4 kNothing{};
  const bool addresses = simt::current->lane < 16;
  const void* values = addresses ? shared_memory().read(row, 16, where) : &kNothing;
  const Fragment4 f = simt::ldmatrix(*site.record, simt::Operation::kLdmatrixX2, values);
  return {{f.x[0], f.x[1]}};
}

[[gnu::always_inline]] inline Fragment4 ldmatrix_x4_transposed(
    Site site, Address row, Where where = Where::current()) {
  const void* values = shared_memory().read(row, 16, where);
  return simt::ldmatrix(*site.record, simt::Operation::kLdmatrixX4Transposed, values);
}

namespace detail {

template <class T>
struct Format;

template <>
struct Format<Bfloat16> {
  static constexpr simt::Operation kMma = simt::Operation::kMmaBfloat16;
  static constexpr auto widen = simt::widen_bfloat16;
  static constexpr auto narrow = simt::narrow_bfloat16;
};

template <>
struct Format<Float16> {
  static constexpr simt::Operation kMma = simt::Operation::kMmaFloat16;
  static constexpr auto widen = simt::widen_float16;
  static constexpr auto narrow = simt::narrow_float16;
};

}  // namespace detail

template <class T>
[[gnu::always_inline]] inline void mma_m16n8k16(
    Site site, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::mma_m16n8k16(*site.record, detail::Format<T>::kMma, d, a, b0, b1);
}

template <class T>
uint32_t pack2(float low, float high) {
  return detail::Format<T>::narrow(low) | detail::Format<T>::narrow(high) << 16;
}

template <class T>
float unpack_low(uint32_t packed) {
  return detail::Format<T>::widen(packed & 0xffffu);
}

template <class T>
float unpack_high(uint32_t packed) {
  return detail::Format<T>::widen(packed >> 16);
}

inline float as_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

inline int anew(int value) {
  return value;
}

// ---- perturbed at their sites

inline int stage(Site site, int index, int count) {
  const bool wrong =
      simt::enter(*site.record, simt::Operation::kStage) == simt::Perturbation::kWrongStage;
  return wrong ? (index + 1) % count : index;
}

inline bool below(Site site, int value, int limit) {
  switch (simt::enter(*site.record, simt::Operation::kBelow)) {
    case simt::Perturbation::kOneMore:
      return value < limit + 1;
    case simt::Perturbation::kOneLess:
      return value < limit - 1;
    default:
      return value < limit;
  }
}

}  // namespace r21d::ptx
