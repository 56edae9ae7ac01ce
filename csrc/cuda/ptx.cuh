// Each instruction that the kernels use, once: PTX on the device, simulated on the host.
//
// With R21D_SIMT the same names come from simt/instructions.h, and the kernels compile as C++.
// Shared memory is an Address, in bytes as the instructions take it; global memory is read and
// written through load_global and store_global; no kernel dereferences a pointer. The layouts of
// fragments are drawn in docs/kernels.md; section numbers are those of the PTX ISA 9.0.
//
// A Site names a place whose synchronisation can be perturbed on the host (simt/site.h); on the
// device it is nothing.
#pragma once

#ifdef R21D_SIMT

#include "simt/instructions.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define R21D_DEVICE __device__ __forceinline__
// A kernel of at most `threads` a block, at least `blocks` of which fit a multiprocessor.
#define R21D_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define R21D_SITE(name) \
  ::r21d::ptx::Site {   \
  }

namespace r21d::ptx {

struct Site {};

struct Index3 {
  uint32_t x, y, z;
};

R21D_DEVICE uint32_t thread_index() {
  return threadIdx.x;
}

R21D_DEVICE Index3 block_index() {
  return {blockIdx.x, blockIdx.y, blockIdx.z};
}

R21D_DEVICE Index3 grid_size() {
  return {gridDim.x, gridDim.y, gridDim.z};
}

// ---- shared memory

using Address = uint32_t;

// The first byte of the dynamic shared memory, on a boundary of 16 bytes.
R21D_DEVICE Address dynamic_shared() {
  extern __shared__ __align__(16) unsigned char r21d_dynamic_shared[];
  return static_cast<Address>(__cvta_generic_to_shared(r21d_dynamic_shared));
}

// `bytes` of static shared memory for this line of the kernel, as Address `name`.
#define R21D_STATIC_SHARED(name, bytes)                         \
  __shared__ __align__(16) unsigned char name##_storage[bytes]; \
  const ::r21d::ptx::Address name =                             \
      static_cast<::r21d::ptx::Address>(__cvta_generic_to_shared(name##_storage))

struct alignas(8) Vec2 {
  uint32_t x[2];
};

struct alignas(16) Vec4 {
  uint32_t x[4];
};

// ld.shared (9.7.9.8); T is uint16_t, uint32_t, float, Vec2 or Vec4, at a multiple of its size.
template <class T>
R21D_DEVICE T load_shared(Address at);

template <>
R21D_DEVICE uint16_t load_shared<uint16_t>(Address at) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(at));
  return value;
}

template <>
R21D_DEVICE uint32_t load_shared<uint32_t>(Address at) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(at));
  return value;
}

template <>
R21D_DEVICE float load_shared<float>(Address at) {
  return __uint_as_float(load_shared<uint32_t>(at));
}

template <>
R21D_DEVICE Vec2 load_shared<Vec2>(Address at) {
  Vec2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x[0]), "=r"(v.x[1]) : "r"(at));
  return v;
}

template <>
R21D_DEVICE Vec4 load_shared<Vec4>(Address at) {
  Vec4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "r"(at));
  return v;
}

// st.shared (9.7.9.11)
R21D_DEVICE void store_shared(Address at, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(value) : "memory");
}

R21D_DEVICE void store_shared(Address at, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
}

R21D_DEVICE void store_shared(Address at, float value) {
  store_shared(at, __float_as_uint(value));
}

R21D_DEVICE void store_shared(Address at, const Vec2& v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(v.x[0]), "r"(v.x[1]) : "memory");
}

R21D_DEVICE void store_shared(Address at, const Vec4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(v.x[0]),
               "r"(v.x[1]),
               "r"(v.x[2]),
               "r"(v.x[3])
               : "memory");
}

// ---- global memory; T is uint16_t, uint32_t, float or Vec4, at a multiple of its size

// ld.global.nc (9.7.9.9): memory that nobody writes during the kernel.
template <class T>
R21D_DEVICE T load_global(const T* at) {
  return __ldg(at);
}

template <>
R21D_DEVICE Vec4 load_global<Vec4>(const Vec4* at) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(at));
  return {{v.x, v.y, v.z, v.w}};
}

template <class T>
R21D_DEVICE void store_global(T* at, const T& value) {
  *at = value;
}

template <>
R21D_DEVICE void store_global<Vec4>(Vec4* at, const Vec4& v) {
  *reinterpret_cast<uint4*>(at) = make_uint4(v.x[0], v.x[1], v.x[2], v.x[3]);
}

// ---- asynchronous copies (9.7.9.25.3)

// cp.async.cg: 16 bytes from global to shared memory, both on boundaries of 16 bytes; zeros where
// `wanted` is false, and `from` is not read then.
R21D_DEVICE void cp_async16(Address to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)),
               "r"(wanted ? 16 : 0)
               : "memory");
}

// Closes the group of this thread's copies since the last commit.
R21D_DEVICE void cp_async_commit(Site) {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `Pending` of this thread's latest groups are under way.
template <int Pending>
R21D_DEVICE void cp_async_wait(Site) {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- synchronisation (9.7.13.1)

R21D_DEVICE void sync_threads(Site) {
  __syncthreads();
}

R21D_DEVICE void sync_warp(Site) {
  __syncwarp();
}

// barrier.sync / barrier.arrive: barrier `id` of 1 to 15 for `threads` threads, a multiple of 32.
R21D_DEVICE void sync_named(Site, int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

R21D_DEVICE void arrive_named(Site, int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- across a warp, all 32 lanes together

template <class T>
R21D_DEVICE T shuffle(Site, T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

template <class T>
R21D_DEVICE T shuffle_xor(Site, T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class T>
R21D_DEVICE T shuffle_down(Site, T value, int by) {
  return __shfl_down_sync(0xffffffffu, value, by);
}

R21D_DEVICE uint32_t ballot(Site, bool value) {
  return __ballot_sync(0xffffffffu, value);
}

// ---- atomics (9.7.13.5), relaxed

template <class T>
R21D_DEVICE T atomic_add_global(T* at, T value) {
  return atomicAdd(at, value);
}

R21D_DEVICE float atomic_add_shared(Address at, float value) {
  float old;
  asm volatile("atom.shared.add.f32 %0, [%1], %2;" : "=f"(old) : "r"(at), "f"(value) : "memory");
  return old;
}

R21D_DEVICE uint32_t atomic_add_shared(Address at, uint32_t value) {
  uint32_t old;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(value) : "memory");
  return old;
}

// ---- tensor cores

// ldmatrix (9.7.14.5.15): four (two) 8×8 matrices of 16-bit values. Lane 8·i + r gives the address
// of row r of matrix i, on a boundary of 16 bytes; lane l gets values 2·(l%4) and 2·(l%4) + 1 of
// row l/4 of matrix i in register i. For the two, lanes 16 to 31 give addresses that are not read.
struct Fragment4 {
  uint32_t x[4];
};

struct Fragment2 {
  uint32_t x[2];
};

R21D_DEVICE Fragment4 ldmatrix_x4(Site, Address row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(row)
               : "memory");
  return f;
}

R21D_DEVICE Fragment2 ldmatrix_x2(Site, Address row) {
  Fragment2 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(f.x[0]), "=r"(f.x[1])
               : "r"(row)
               : "memory");
  return f;
}

// The same, each matrix transposed: lane l gets values of column l/4.
R21D_DEVICE Fragment4 ldmatrix_x4_transposed(Site, Address row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(row)
               : "memory");
  return f;
}

// 16-bit formats: the type of the elements, as a tag.
struct Bfloat16 {};
struct Float16 {};

// mma.sync m16n8k16 (9.7.14.5.8): d += a·b in float32; a 16×16 by rows, b 16×8 by columns.
template <class T>
R21D_DEVICE void mma_m16n8k16(
    Site, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
R21D_DEVICE void mma_m16n8k16<Bfloat16>(
    Site, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
R21D_DEVICE void mma_m16n8k16<Float16>(
    Site, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two float32 rounded to nearest even, `low` in the lower half.
template <class T>
R21D_DEVICE uint32_t pack2(float low, float high);

template <>
R21D_DEVICE uint32_t pack2<Bfloat16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <>
R21D_DEVICE uint32_t pack2<Float16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The lower or upper half of `packed` as float32.
template <class T>
R21D_DEVICE float unpack_low(uint32_t packed);
template <class T>
R21D_DEVICE float unpack_high(uint32_t packed);

template <>
R21D_DEVICE float unpack_low<Bfloat16>(uint32_t packed) {
  return __uint_as_float(packed << 16);
}

template <>
R21D_DEVICE float unpack_high<Bfloat16>(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

template <>
R21D_DEVICE float unpack_low<Float16>(uint32_t packed) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(packed)));
}

template <>
R21D_DEVICE float unpack_high<Float16>(uint32_t packed) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(packed >> 16)));
}

R21D_DEVICE float as_float(uint32_t bits) {
  return __uint_as_float(bits);
}

// The same value, unknown to the compiler: what follows from it is computed here, and not kept in
// registers from where it was computed before.
R21D_DEVICE int anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- perturbed on the host, plain arithmetic here

// `index` of `count` buffers used in turn.
R21D_DEVICE int stage(Site, int index, int count) {
  return index;
}

// Whether `value` is below `limit`.
R21D_DEVICE bool below(Site, int value, int limit) {
  return value < limit;
}

}  // namespace r21d::ptx

#endif  // R21D_SIMT
