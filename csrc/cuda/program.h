// The host's side of the CUDA operator: what is packed, which kernels are launched, with which
// parameters. `Device` is the GPU (inference.cu) or the simulator (simt/inference.cpp):
//
//   void* allocate(int64_t bytes)          scratch that lives until the launches are done
//   launch(name, kernel, grid, threads, shared_bytes, params)
//   pack(grid, params), merge(grid, params)  the kernels of pack.cuh and merge.cuh
#pragma once

#include <cstdint>

#include "cuda/conv.cuh"
#include "cuda/fused.cuh"
#include "cuda/planner.h"
#include "geometry.h"

namespace r21d::cuda {

struct Grid {
  int64_t x, y, z;
};

// A tensor of 16-bit values with the strides of its axes, in values.
struct Strided {
  const void* data;
  int64_t strides[5];
};

struct Operands {
  const void* x;            // NDHWC
  Strided spatial_weight;   // (M, C, 1, kh, kw)
  Strided temporal_weight;  // (O, M, kt, 1, 1)
  const float* scale;       // (M)
  const float* shift;
  const float* out_scale;  // (O) or null
  const float* out_shift;
  const void* residual;  // as y, or null
  bool relu;
  void* y;  // NDHWC
};

inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <class Device>
const void* pack(Device& device, const PackParams& wanted) {
  const bool as_it_is =
      wanted.stride_inner == 1 && wanted.inner == wanted.padded &&
      (wanted.cols == 1 || wanted.stride_col == wanted.padded) &&
      (wanted.rows == 1 || wanted.stride_row == int64_t{wanted.cols} * wanted.padded) &&
      wanted.length == int64_t{wanted.rows} * wanted.cols * wanted.padded &&
      (wanted.outer == 1 || wanted.stride_outer == wanted.length);
  if (as_it_is && is_aligned(wanted.in)) {
    return wanted.in;
  }
  PackParams p = wanted;
  const int64_t values = int64_t{p.outer} * p.length;
  p.out = device.allocate(values * 2);
  // More blocks than this only wait for each other.
  constexpr int64_t kMostBlocks = 4096;
  const int64_t blocks = ceil_div(values, kPackThreads);
  device.pack(Grid{blocks < kMostBlocks ? blocks : kMostBlocks, 1, 1}, p);
  return p.out;
}

// The spatial weight as rows of `length` values, channels padded to `padded`.
template <class Device>
const void* pack_spatial(
    Device& device, const Strided& w, const SpatialGeometry& g, int64_t padded, int64_t length) {
  PackParams p{};
  p.in = w.data;
  p.stride_outer = w.strides[0];
  p.stride_row = w.strides[3];
  p.stride_col = w.strides[4];
  p.stride_inner = g.c == 1 ? 1 : w.strides[1];
  p.outer = static_cast<int>(g.m);
  p.rows = static_cast<int>(g.kh);
  p.cols = static_cast<int>(g.kw);
  p.inner = static_cast<int>(g.c);
  p.padded = static_cast<int>(padded);
  p.length = static_cast<int>(length);
  return pack(device, p);
}

template <class Device>
const void* pack_temporal(
    Device& device, const Strided& w, const TemporalGeometry& g, int64_t padded) {
  PackParams p{};
  p.in = w.data;
  p.stride_outer = w.strides[0];
  p.stride_row = w.strides[2];
  p.stride_inner = g.m == 1 ? 1 : w.strides[1];
  p.outer = static_cast<int>(g.o);
  p.rows = static_cast<int>(g.kt);
  p.cols = 1;
  p.inner = static_cast<int>(g.m);
  p.padded = static_cast<int>(padded);
  p.length = static_cast<int>(g.kt * padded);
  return pack(device, p);
}

// `pixels` rows of `channels` values, or a copy with `padded` ones where rows of 16-byte chunks
// need it.
template <class Device>
const void* readable_rows(
    Device& device, const void* rows, int64_t pixels, int64_t channels, int64_t padded) {
  PackParams p{};
  p.in = rows;
  p.stride_outer = channels;
  p.stride_inner = 1;
  p.outer = static_cast<int>(pixels);
  p.rows = 1;
  p.cols = 1;
  p.inner = static_cast<int>(channels);
  p.padded = static_cast<int>(padded);
  p.length = p.padded;
  return pack(device, p);
}

template <class Device>
const void* readable_input(Device& device, const void* x, const SpatialGeometry& g) {
  return is_narrow(g) ? x : readable_rows(device, x, g.n * g.t * g.h * g.w, g.c, read_channels(g));
}

inline Epilogue output_epilogue(const Operands& in, const TemporalGeometry& t) {
  Epilogue e{};
  e.scale = in.out_scale;
  e.shift = in.out_shift;
  e.residual = in.residual;
  e.out = in.y;
  e.columns = static_cast<int>(t.o);
  e.pitch = e.columns;
  e.relu = in.relu;
  e.chunks = t.o % kChunk == 0 && is_aligned(in.y) && is_aligned(in.residual);
  return e;
}

// ---- two kernels, v in memory

// Without the tensors and the epilogue.
inline ConvParams conv_params(const ConvProblem& c, int64_t stride_rows, int64_t stride_cols) {
  ConvParams p{};
  p.pixels = static_cast<int>(c.pixels());
  p.rows = static_cast<int>(c.rows);
  p.cols = static_cast<int>(c.cols);
  p.channels = static_cast<int>(c.channels);
  p.out_rows = static_cast<int>(c.out_rows);
  p.out_cols = static_cast<int>(c.out_cols);
  p.kernel_rows = static_cast<int>(c.kernel_rows);
  p.kernel_cols = static_cast<int>(c.kernel_cols);
  p.stride_rows = static_cast<int>(stride_rows);
  p.stride_cols = static_cast<int>(stride_cols);
  p.padding_rows = static_cast<int>(c.padding_rows);
  p.padding_cols = static_cast<int>(c.padding_cols);
  p.depth = static_cast<int>(c.depth());
  p.narrow = c.narrow;
  return p;
}

template <class T, class Device>
void launch_conv(Device& device, const ConvPlan& plan, const ConvParams& p) {
  const Grid grid{plan.grid_x, plan.grid_y, 1};
#define R21D_LAUNCH(kWarps, kColumns)                                                         \
  if (plan.pixel_warps == kWarps && plan.columns == kColumns) {                               \
    using Tile = ConvTile<kWarps, kColumns>;                                                  \
    device.launch("conv", conv_kernel<T, Tile>, grid, Tile::kThreads, Tile::kSharedBytes, p); \
  }
  R21D_CONV_TILES(R21D_LAUNCH)
#undef R21D_LAUNCH
}

template <class T, class Device>
void run_two(
    Device& device,
    const Operands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const Plan& plan) {
  const int64_t pitch = mid_pitch(s);
  void* v = device.allocate(s.n * s.t * s.ho * s.wo * pitch * 2);

  ConvParams p = conv_params(spatial_problem(s), s.sh, s.sw);
  p.x = readable_input(device, in.x, s);
  p.weight = pack_spatial(device, in.spatial_weight, s, p.channels, p.depth);
  p.epilogue.scale = in.scale;
  p.epilogue.shift = in.shift;
  p.epilogue.out = v;
  p.epilogue.columns = static_cast<int>(s.m);
  p.epilogue.pitch = static_cast<int>(pitch);
  p.epilogue.relu = true;
  p.epilogue.chunks = true;
  launch_conv<T>(device, plan.spatial, p);

  ConvParams q = conv_params(temporal_problem(s, t), t.st, 1);
  q.x = v;
  q.weight = pack_temporal(device, in.temporal_weight, t, pitch);
  q.epilogue = output_epilogue(in, t);
  launch_conv<T>(device, plan.temporal, q);
}

// ---- one kernel

template <class T, class Device>
void run_fused(
    Device& device,
    const Operands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const FusedPlan& plan) {
  const int64_t pitch = mid_pitch(s);
  FusedParams p{};
  p.x = readable_input(device, in.x, s);
  p.channels = static_cast<int>(read_channels(s));
  p.narrow = is_narrow(s);
  p.depth = plan.depth;
  p.band_channels = plan.band_channels;
  p.band_cols = plan.band_cols;
  p.band_bytes = plan.band_bytes;
  p.bands = plan.bands;
  p.raw_bytes = plan.raw_bytes;
  p.spatial_weight =
      pack_spatial(device, in.spatial_weight, s, p.narrow ? s.c : plan.band_channels, plan.depth);
  p.temporal_weight = pack_temporal(device, in.temporal_weight, t, pitch);
  p.scale = in.scale;
  p.shift = in.shift;
  p.frames = static_cast<int>(s.t);
  p.rows = static_cast<int>(s.h);
  p.cols = static_cast<int>(s.w);
  p.mid = static_cast<int>(s.m);
  p.mid_pitch = static_cast<int>(pitch);
  p.out_frames = static_cast<int>(t.to);
  p.out_rows = static_cast<int>(s.ho);
  p.out_cols = static_cast<int>(s.wo);
  p.kernel_frames = static_cast<int>(t.kt);
  p.kernel_rows = static_cast<int>(s.kh);
  p.kernel_cols = static_cast<int>(s.kw);
  p.stride_frames = static_cast<int>(t.st);
  p.stride_rows = static_cast<int>(s.sh);
  p.stride_cols = static_cast<int>(s.sw);
  p.padding_frames = static_cast<int>(t.pt);
  p.padding_rows = static_cast<int>(s.ph);
  p.padding_cols = static_cast<int>(s.pw);
  p.tiles = plan.tiles;
  p.chunk = plan.chunk;
  p.epilogue = output_epilogue(in, t);
  const Grid grid{plan.grid_x, plan.grid_y, plan.grid_z};
#define R21D_LAUNCH(kWarps, kMids, kLive)                                                      \
  if (plan.pixel_warps == kWarps && plan.mids == kMids && plan.live == kLive) {                \
    using Tile = FusedTile<kWarps, kMids, kLive>;                                              \
    device.launch("fused", fused_kernel<T, Tile>, grid, Tile::kThreads, plan.shared_bytes, p); \
  }
  R21D_FUSED_TILES(R21D_LAUNCH)
#undef R21D_LAUNCH
}

template <class T, class Device>
void run(
    Device& device,
    const Operands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const Plan& plan,
    bool fused) {
  if (fused) {
    run_fused<T>(device, in, s, t, plan.fused);
  } else {
    run_two<T>(device, in, s, t, plan);
  }
}

}  // namespace r21d::cuda
