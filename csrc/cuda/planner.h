// How the CUDA kernels run a problem: which tile, how much shared memory, how T is cut, and whether
// one kernel or two, by an estimate of the time. Pure host code without torch or CUDA.
//
// The estimate orders plans and promises no time. A multiprocessor multiplies, issues copies and
// waits at barriers; blocks that share it hide each other's waits, but not each other's products.
// The whole GPU cannot be faster than its memory, nor than its L2. The rates below are assumed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>

#include "cuda/config.h"
#include "cuda/limits.h"
#include "geometry.h"

namespace r21d::cuda {

// What the device offers.
struct Gpu {
  int multiprocessors;
  int shared_block;           // bytes that one block may have (by opting in)
  int shared_multiprocessor;  // bytes of a multiprocessor
  double flops;               // a second, of a large matrix product
  double bytes_per_second;    // of a large copy, read plus written
  int registers = 65536;      // of a multiprocessor
};

// ---- assumed, never measured
// Of the matrix product's rate, for mma.sync fed through ldmatrix.
inline constexpr double kProductShare = 0.55;
// What a multiprocessor gets from L2, in a second.
inline constexpr double kL2Bytes = 45e9;
// Single values that a multiprocessor gathers from memory in a second, at 45 instructions each, and
// unfolds from shared memory, at 8 and with a third of the lanes idle.
inline constexpr double kGatheredValues = 5e9;
inline constexpr double kUnfoldedValues = 18e9;
// A step of a ring of stages: its barrier, and until the tensor cores are busy again.
inline constexpr double kStepSeconds = 30e-9;
// A band's latency, and the bytes of a second once they come.
inline constexpr double kBandSeconds = 0.7e-6;
inline constexpr double kBandBytes = 100e9;

// The system's share of shared memory, for each block.
inline constexpr int kReservedShared = 1024;
inline constexpr int64_t kMostLive = 3;

// What a test asks for; 0: free.
struct Forced {
  int pixel_warps = 0;
  int columns = 0;  // of a convolution; of the fused kernel, channels of M in a slice
  int bands = 0;
  int chunk = 0;
  int parts = 0;  // of the sum, in training
};

struct ForcedPlan {
  Forced spatial, temporal, fused;
  // Of training:
  Forced spatial_forward, temporal_forward, temporal_gradient, temporal_weight, spatial_gradient,
      spatial_weight;
};

// Arithmetic, traffic and time of one launch.
struct Cost {
  double flops;     // that the tensor cores do: padding included
  double bytes;     // of memory: every tensor once
  double l2_bytes;  // that the blocks ask for
  double seconds;
};

struct ConvPlan {
  int pixel_warps, columns;  // 0: no tile is what was forced
  int threads, stages, shared_bytes, registers;
  int grid_x, grid_y;  // tiles of pixels, of columns
  int blocks_per_multiprocessor;
  int depth;
  Cost cost;
};

struct FusedPlan {
  std::string refusal;  // why it cannot run; empty: it can, and the rest is set
  int pixel_warps, mids, live, slices;
  int bands, band_bytes, raw_bytes, band_rows, band_cols, band_channels;
  int depth;
  int tiles, chunk, chunks, column_tiles;
  int threads, stages, shared_bytes, registers;
  int grid_x, grid_y, grid_z;  // tiles of all clips, chunks, tiles of O
  int blocks_per_multiprocessor;
  Cost cost;
};

struct Plan {
  std::string refusal;  // why neither can run; empty: at least the two convolutions can
  bool narrow;          // x is gathered value by value
  bool packs_x;         // x is copied to `channels` channels first
  int channels;         // of x, as the kernels read it
  int mid_pitch;        // channels of v in memory
  double pack_seconds;  // of that copy
  ConvPlan spatial, temporal;
  FusedPlan fused;
  double two_seconds, fused_seconds;  // with the copy; of the fused kernel 0 where it cannot run
  bool prefers_fused;
};

// ---- time

// Blocks that a multiprocessor holds at once; 0: none fits.
inline int resident_blocks(const Gpu& gpu, int threads, int registers, int64_t shared_bytes) {
  if (shared_bytes > gpu.shared_block) {
    return 0;
  }
  const int64_t by_shared = gpu.shared_multiprocessor / (shared_bytes + kReservedShared);
  const int64_t by_registers = gpu.registers / (int64_t{threads} * round_up(registers, 8));
  return static_cast<int>(std::min(by_shared, by_registers));
}

inline double multiprocessor_flops(const Gpu& gpu) {
  return gpu.flops * kProductShare / gpu.multiprocessors;
}

// What every block of a launch does.
struct BlockWork {
  double flops;
  double gathering;  // seconds of it, value by value
  double waits;      // seconds at barriers and for copies
  double l2_bytes;
};

inline Cost cost_of(
    const Gpu& gpu, const BlockWork& work, double blocks, int resident, double bytes) {
  const double multiprocessors = gpu.multiprocessors;
  const double busy = work.flops / multiprocessor_flops(gpu) + work.gathering;
  const double turns = std::ceil(blocks / multiprocessors);
  const double waves = std::ceil(blocks / (multiprocessors * resident));
  const double l2_bytes = blocks * work.l2_bytes;
  const double seconds = std::max(
      {turns * busy + waves * work.waits,
       bytes / gpu.bytes_per_second,
       l2_bytes / (kL2Bytes * multiprocessors)});
  return {blocks * work.flops, bytes, l2_bytes, seconds};
}

inline bool allows(int forced, int value) {
  return forced == 0 || forced == value;
}

// ---- a convolution

template <class Tile>
ConvPlan conv_with(const Gpu& gpu, const ConvProblem& p) {
  constexpr int kStepDepth = Tile::kDepthChunks * kChunk;
  ConvPlan plan{};
  plan.pixel_warps = Tile::kPixelWarps;
  plan.columns = Tile::kColumns;
  plan.threads = Tile::kThreads;
  plan.stages = Tile::kStages;
  plan.shared_bytes = Tile::kSharedBytes;
  plan.registers = Tile::kRegisters;
  plan.grid_x = static_cast<int>(ceil_div(p.pixels(), Tile::kPixels));
  plan.grid_y = static_cast<int>(ceil_div(p.pitch, Tile::kColumns));
  plan.depth = static_cast<int>(p.depth());
  plan.blocks_per_multiprocessor =
      resident_blocks(gpu, plan.threads, plan.registers, plan.shared_bytes);
  if (plan.blocks_per_multiprocessor == 0) {
    return plan;
  }
  const double steps = static_cast<double>(ceil_div(plan.depth, kStepDepth));
  const double depth = steps * kStepDepth;
  const double read = p.narrow ? static_cast<double>(Tile::kColumns)
                               : static_cast<double>(Tile::kPixels + Tile::kColumns);
  const BlockWork work{
      2.0 * Tile::kPixels * Tile::kColumns * depth,
      p.narrow ? Tile::kPixels * depth / kGatheredValues : 0.0,
      (steps + Tile::kStages) * kStepSeconds,
      2.0 * read * depth};
  const double input = static_cast<double>(p.images * p.rows * p.cols) * p.channels;
  const double output = static_cast<double>(p.pixels()) * p.pitch;
  const double bytes = 2.0 * (input + output + static_cast<double>(p.columns) * plan.depth);
  const double blocks = static_cast<double>(plan.grid_x) * plan.grid_y;
  plan.cost = cost_of(gpu, work, blocks, plan.blocks_per_multiprocessor, bytes);
  return plan;
}

inline ConvPlan plan_conv(const Gpu& gpu, const ConvProblem& p, const Forced& forced) {
  ConvPlan best{};
  const auto consider = [&](auto tile) {
    using Tile = decltype(tile);
    if (!allows(forced.pixel_warps, Tile::kPixelWarps) || !allows(forced.columns, Tile::kColumns)) {
      return;
    }
    const ConvPlan plan = conv_with<Tile>(gpu, p);
    const bool fits = plan.blocks_per_multiprocessor > 0;
    if (fits && (best.pixel_warps == 0 || plan.cost.seconds < best.cost.seconds)) {
      best = plan;
    }
  };
#define R21D_CONSIDER(...) consider(ConvTile<__VA_ARGS__>{});
  R21D_CONV_TILES(R21D_CONSIDER)
#undef R21D_CONSIDER
  return best;
}

// ---- the fused kernel

// The most rows of output that a tile of consecutive pixels lies in. Tiles begin at multiples of
// `pixels`.
inline int64_t tile_rows(int64_t pixels, int64_t rows, int64_t cols) {
  const int64_t last_start = cols - std::gcd(pixels, cols);
  return std::min(rows, (last_start + pixels - 1) / cols + 1);
}

// Frames that the `frames` output frames of a chunk see, at most.
inline int64_t frames_seen(const TemporalGeometry& t, int64_t frames) {
  const int64_t seen = t.st < t.kt ? (frames - 1) * t.st + t.kt : frames * t.kt;
  return std::min(seen, t.t);
}

inline int saturated(double bytes) {
  return bytes < INT32_MAX ? static_cast<int>(bytes) : INT32_MAX;
}

// What a block holds; without the chunks of T.
template <class Tile>
FusedPlan fused_shape(const SpatialGeometry& s, const TemporalGeometry& t, int bands) {
  FusedPlan plan{};
  const bool narrow = is_narrow(s);
  const int64_t taps = s.kh * s.kw;
  const int64_t channels = round_up(s.c, 16);
  const int64_t depth = narrow ? round_up(taps * s.c, 16) : taps * channels;
  const int64_t band_channels = narrow ? depth : channels;
  const int64_t band_rows = (tile_rows(Tile::kPixels, s.ho, s.wo) - 1) * s.sh + s.kh;
  const int64_t band_cols = (s.wo - 1) * s.sw + s.kw;
  // Doubles hold what no 64-bit integer would.
  const double places = static_cast<double>(band_rows) * static_cast<double>(band_cols);
  const double pitch = odd_pitch(static_cast<int>(band_channels) / kChunk) * 16.0;
  const double band_bytes = (narrow ? Tile::kPixels : places) * pitch;
  const double raw_bytes = narrow ? 16.0 * std::ceil(places * s.c / kChunk) : 0.0;
  plan.pixel_warps = Tile::kPixelWarps;
  plan.mids = Tile::kMids;
  plan.live = Tile::kLive;
  plan.slices = static_cast<int>(ceil_div(s.m, Tile::kMids));
  plan.bands = bands;
  plan.band_bytes = saturated(band_bytes);
  plan.raw_bytes = saturated(raw_bytes);
  plan.band_rows = static_cast<int>(band_rows);
  plan.band_cols = static_cast<int>(band_cols);
  plan.band_channels = static_cast<int>(band_channels);
  plan.depth = static_cast<int>(depth);
  plan.tiles = static_cast<int>(ceil_div(s.ho * s.wo, Tile::kPixels));
  plan.column_tiles = static_cast<int>(ceil_div(t.o, Tile::kColumns));
  plan.threads = Tile::kThreads;
  plan.stages = Tile::kStages;
  plan.shared_bytes = saturated(Tile::kFixedBytes + bands * band_bytes + raw_bytes);
  plan.registers = Tile::kRegisters;
  plan.grid_x = static_cast<int>(plan.tiles * s.n);
  plan.grid_z = plan.column_tiles;
  return plan;
}

// The plan with chunks of `chunk` output frames.
template <class Tile>
FusedPlan with_chunk(
    const Gpu& gpu,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    FusedPlan plan,
    int64_t chunk) {
  plan.chunk = static_cast<int>(chunk);
  plan.chunks = static_cast<int>(ceil_div(t.to, chunk));
  plan.grid_y = plan.chunks;
  const bool narrow = is_narrow(s);
  const double frames = static_cast<double>(frames_seen(t, chunk));
  const double mids = static_cast<double>(plan.slices) * Tile::kMids;
  const double taps = static_cast<double>(chunk * t.kt);
  const double places = static_cast<double>(plan.band_rows) * plan.band_cols;
  const double first = 2.0 * Tile::kPixels * mids * plan.depth * frames;
  const double second = 2.0 * Tile::kPixels * mids * Tile::kColumns * taps;
  // One band is filled during the second product of its frame's last slice; raw ones are awaited.
  double exposed = kBandSeconds;
  if (!narrow) {
    const double load = kBandSeconds + plan.band_bytes / kBandBytes;
    const double hidden = second / frames / plan.slices / multiprocessor_flops(gpu);
    exposed = plan.bands == 2 ? 0.0 : std::max(0.0, load - hidden);
  }
  const double steps =
      plan.slices *
      static_cast<double>(ceil_div(plan.depth, Tile::kDepthChunks * kChunk) + Tile::kSliceUnits);
  const double unfolding =
      places * s.c / kGatheredValues + double{Tile::kPixels} * plan.depth / kUnfoldedValues;
  const double weights = mids * (plan.depth * frames + Tile::kColumns * taps);
  const BlockWork work{
      first + second,
      narrow ? frames * unfolding : 0.0,
      frames * (steps * kStepSeconds + exposed),
      2.0 * (frames * places * read_channels(s) + weights)};
  const double input = static_cast<double>(s.n * s.t * s.h * s.w) * read_channels(s);
  const double output = static_cast<double>(t.n * t.to * t.ho * t.wo) * t.o;
  const double depths =
      static_cast<double>(s.m) * plan.depth + static_cast<double>(t.o * t.kt) * mid_pitch(s);
  const double blocks = static_cast<double>(plan.grid_x) * plan.grid_y * plan.grid_z;
  plan.cost =
      cost_of(gpu, work, blocks, plan.blocks_per_multiprocessor, 2.0 * (input + output + depths));
  return plan;
}

// The shortest chunk of the next number of chunks above `chunks` that there can be; 0: none.
inline int64_t shorter_chunk(int64_t frames, int64_t chunks) {
  const int64_t longest = (frames - 1) / chunks;
  return longest == 0 ? 0 : ceil_div(frames, ceil_div(frames, longest));
}

inline FusedPlan refused(std::string reason) {
  FusedPlan plan{};
  plan.refusal = std::move(reason);
  return plan;
}

inline FusedPlan plan_fused(
    const Gpu& gpu, const SpatialGeometry& s, const TemporalGeometry& t, const Forced& forced) {
  const int64_t live = ceil_div(t.kt, t.st);
  if (live > kMostLive) {
    return refused(
        std::to_string(live) + " output frames see one frame; at most " +
        std::to_string(kMostLive) + " are served");
  }
  FusedPlan best = refused("no tile is what was forced");
  int least_shared = INT32_MAX;
  const auto consider = [&](auto tile, int bands) {
    using Tile = decltype(tile);
    if (Tile::kLive != live || !allows(forced.pixel_warps, Tile::kPixelWarps) ||
        !allows(forced.columns, Tile::kMids) || !allows(forced.bands, bands)) {
      return;
    }
    FusedPlan shape = fused_shape<Tile>(s, t, bands);
    shape.blocks_per_multiprocessor =
        resident_blocks(gpu, shape.threads, shape.registers, shape.shared_bytes);
    if (shape.blocks_per_multiprocessor == 0) {
      if (!best.refusal.empty() && shape.shared_bytes <= least_shared) {
        least_shared = shape.shared_bytes;
        best = refused(
            "a block would take " + std::to_string(shape.shared_bytes) +
            " bytes of shared memory; the GPU gives " + std::to_string(gpu.shared_block));
      }
      return;
    }
    int64_t chunk = forced.chunk > 0 ? std::min<int64_t>(forced.chunk, t.to) : t.to;
    while (chunk > 0 && ceil_div(t.to, chunk) <= kMaxGridY) {
      const FusedPlan plan = with_chunk<Tile>(gpu, s, t, shape, chunk);
      if (!best.refusal.empty() || plan.cost.seconds < best.cost.seconds) {
        best = plan;
      }
      chunk = forced.chunk > 0 ? 0 : shorter_chunk(t.to, plan.chunks);
    }
  };
  for (int bands = is_narrow(s) ? 1 : 2; bands > 0; --bands) {
#define R21D_CONSIDER(...) consider(FusedTile<__VA_ARGS__>{}, bands);
    R21D_FUSED_TILES(R21D_CONSIDER)
#undef R21D_CONSIDER
  }
  return best;
}

// ---- both

inline Plan plan(
    const Gpu& gpu,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const ForcedPlan& forced = {}) {
  Plan plan{};
  plan.refusal = too_large(s, t);
  if (!plan.refusal.empty()) {
    return plan;
  }
  plan.narrow = is_narrow(s);
  plan.packs_x = read_channels(s) != s.c;
  plan.channels = static_cast<int>(read_channels(s));
  plan.mid_pitch = static_cast<int>(mid_pitch(s));
  const double copied = 2.0 * static_cast<double>(s.n * s.t * s.h * s.w) * (s.c + plan.channels);
  plan.pack_seconds = plan.packs_x ? copied / gpu.bytes_per_second : 0.0;
  plan.spatial = plan_conv(gpu, spatial_problem(s), forced.spatial);
  plan.temporal = plan_conv(gpu, temporal_problem(s, t), forced.temporal);
  plan.fused = plan_fused(gpu, s, t, forced.fused);
  if (plan.spatial.pixel_warps == 0 || plan.temporal.pixel_warps == 0) {
    plan.refusal = "no tile of a convolution is what was forced and fits the GPU";
  }
  const bool fuses = plan.fused.refusal.empty();
  plan.two_seconds = plan.pack_seconds + plan.spatial.cost.seconds + plan.temporal.cost.seconds;
  plan.fused_seconds = fuses ? plan.pack_seconds + plan.fused.cost.seconds : 0.0;
  plan.prefers_fused = fuses && plan.fused_seconds <= plan.two_seconds;
  return plan;
}

}  // namespace r21d::cuda
