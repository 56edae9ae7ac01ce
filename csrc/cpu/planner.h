// How the CPU kernels cut a problem: tile of output pixels, slices of M, chunks of frames. Pure
// host code without torch.
//
// A worker owns a tile of output pixels of one clip and walks its frames. It holds a band of the
// zero-padded input frame, a ring of the intermediate frames that an output frame sees,
// and one block of float32 sums; together they take at most kCacheShare of L2, the rest is for the
// weights that stream through. Larger tiles use each weight for more pixels; smaller ones spread
// better over threads.
#pragma once

#include <cstdint>

#include "cpu/blocks.h"
#include "cpu/isa.h"
#include "geometry.h"

namespace r21d::cpu {

// Of L2, for the buffers of one worker.
inline constexpr double kCacheShare = 0.4;
// Wider rows are cut: a tile this wide uses each weight often enough.
inline constexpr int64_t kMaxTileWidth = 64;
inline constexpr int64_t kMaxTileHeight = 16;

// What the machine offers, and the layout of the units that hold the operands.
struct Machine {
  int threads;
  int lanes;
  int max_pixels;
  int unit_channels;
  int64_t l2;
};

struct Tile {
  int64_t height;
  int64_t width;
  int64_t rows;     // tiles down a frame
  int64_t columns;  // tiles across a frame

  int64_t pixels() const {
    return height * width;
  }
  int64_t count() const {
    return rows * columns;
  }
};

// The input band of a tile: rows and columns of the padded frame, units of a pixel.
struct Band {
  int64_t rows, columns, pixel_units;

  int64_t units() const {
    return rows * columns * pixel_units;
  }
};

inline Band band_of(const SpatialGeometry& g, const Tile& tile, int unit_channels) {
  return {
      (tile.height - 1) * g.sh + g.kh,
      (tile.width - 1) * g.sw + g.kw,
      ceil_div(g.c, unit_channels)};
}

inline Tile make_tile(int64_t ho, int64_t wo, int64_t height, int64_t width) {
  return {height, width, ceil_div(ho, height), ceil_div(wo, width)};
}

struct Plan {
  Tile tile;
  int64_t slice_blocks;  // blocks of M in the ring at once; all of them where they fit
  int64_t chunk_frames;  // output frames of a work item
  int64_t chunks;
};

// Cycles that one frame of one tile takes: arithmetic at two vector operations a cycle, plus the
// weights, which stream from L2 or, where they do not fit, from beyond it.
inline double frame_cycles(
    const Machine& machine, const Tile& tile, double macs_per_pixel, double weight_bytes) {
  constexpr double kL2BytesPerCycle = 32.0;
  constexpr double kMemoryBytesPerCycle = 6.0;
  const double rate = 2.0 * machine.lanes * machine.unit_channels;
  const bool fits = weight_bytes <= (1.0 - kCacheShare) * static_cast<double>(machine.l2);
  return static_cast<double>(tile.pixels()) * macs_per_pixel / rate +
         weight_bytes / (fits ? kL2BytesPerCycle : kMemoryBytesPerCycle);
}

// The tile that `fits(tile)` allows with the least estimated time for `frames` frames of `clips`
// clips; the smallest if none fits.
template <class Fits>
Tile choose_tile(
    const Machine& machine,
    int64_t ho,
    int64_t wo,
    int64_t clips,
    double macs_per_pixel,
    double weight_bytes,
    Fits fits) {
  int64_t width = ceil_div(wo, ceil_div(wo, kMaxTileWidth));
  while (width > machine.max_pixels && !fits(make_tile(ho, wo, 1, width))) {
    width = ceil_div(width, 2);
  }
  Tile best = make_tile(ho, wo, 1, width);
  double best_cycles = 0.0;
  for (int64_t height = 1; height <= kMaxTileHeight && height <= ho; ++height) {
    const Tile tile = make_tile(ho, wo, height, width);
    if (height > 1 && !fits(tile)) {
      break;
    }
    const int64_t rounds = ceil_div(clips * tile.count(), machine.threads);
    // At the end of a call the other workers wait for half a tile on average.
    const double turns = static_cast<double>(rounds) + (machine.threads > 1 ? 0.5 : 0.0);
    const double cycles = turns * frame_cycles(machine, tile, macs_per_pixel, weight_bytes);
    if (height == 1 || cycles < best_cycles) {
      best = tile;
      best_cycles = cycles;
    }
  }
  return best;
}

inline int64_t unit_bytes(int64_t channels, int unit_channels) {
  return ceil_div(channels, unit_channels) * 4;
}

inline int64_t sums_bytes(const Machine& machine, const Tile& tile) {
  return tile.pixels() * kMaxVectors * machine.lanes * 4;
}

// The fused pass.
inline Plan plan_fused(
    const Machine& machine, const SpatialGeometry& s, const TemporalGeometry& t) {
  const int64_t budget = static_cast<int64_t>(kCacheShare * static_cast<double>(machine.l2));
  const int64_t spatial_macs = s.kh * s.kw * s.c * s.m;
  const int64_t temporal_macs = t.kt * t.m * t.o;
  const double weights = 4.0 / machine.unit_channels * (spatial_macs + temporal_macs);
  const int64_t step = kMaxVectors * machine.lanes;
  const auto bytes = [&](const Tile& tile, int64_t channels) {
    const int64_t held = channels < s.m ? channels : s.m;
    return band_of(s, tile, machine.unit_channels).units() * 4 + sums_bytes(machine, tile) +
           t.window() * tile.pixels() * unit_bytes(held, machine.unit_channels);
  };
  Plan plan{};
  plan.tile = choose_tile(
      machine,
      s.ho,
      s.wo,
      s.n,
      static_cast<double>(spatial_macs + temporal_macs),
      weights,
      [&](const Tile& tile) { return bytes(tile, s.m) <= budget; });
  const int64_t blocks = Blocks(s.m, machine.lanes).count();
  plan.slice_blocks = blocks;
  while (plan.slice_blocks > 1 && bytes(plan.tile, plan.slice_blocks * step) > budget) {
    plan.slice_blocks = ceil_div(plan.slice_blocks, 2);
  }
  // Chunks repeat the frames at their seams, so time is cut only where threads would idle, or
  // where slices of M need the sums of all output frames at once.
  int64_t frames = t.to;
  while (frames > 4 && s.n * plan.tile.count() * ceil_div(t.to, frames) < machine.threads) {
    frames = ceil_div(frames, 2);
  }
  if (plan.slice_blocks < blocks) {
    const int64_t frame_bytes = plan.tile.pixels() * round_up(t.o, machine.lanes) * 4;
    while (frames > 1 && frames * frame_bytes > machine.l2 / 2) {
      frames = ceil_div(frames, 2);
    }
  }
  plan.chunk_frames = frames < 1 ? 1 : frames;
  plan.chunks = ceil_div(t.to, plan.chunk_frames);
  return plan;
}

// The spatial convolution alone. Its tile does not depend on the number of threads: BatchNorm's
// statistics are merged tile by tile, and must come out the same on any number.
inline Tile plan_spatial(Machine machine, const SpatialGeometry& s) {
  machine.threads = 1;
  const int64_t macs = s.kh * s.kw * s.c * s.m;
  return choose_tile(
      machine,
      s.ho,
      s.wo,
      s.n * s.t,
      static_cast<double>(macs),
      4.0 / machine.unit_channels * static_cast<double>(macs),
      [&](const Tile& tile) {
        return band_of(s, tile, machine.unit_channels).units() * 4 + sums_bytes(machine, tile) <=
               static_cast<int64_t>(kCacheShare * static_cast<double>(machine.l2));
      });
}

// The temporal convolution alone: one tile per run of pixels, whose rows need not be image rows.
inline Tile plan_temporal(const Machine& machine, const TemporalGeometry& t) {
  const int64_t macs = t.kt * t.m * t.o;
  const int64_t rows = ceil_div(t.ho * t.wo, machine.max_pixels);
  return choose_tile(
      machine,
      rows,
      machine.max_pixels,
      t.n,
      static_cast<double>(macs),
      4.0 / machine.unit_channels * static_cast<double>(macs),
      [&](const Tile& tile) {
        return t.window() * tile.pixels() * unit_bytes(t.m, machine.unit_channels) +
                   sums_bytes(machine, tile) <=
               static_cast<int64_t>(kCacheShare * static_cast<double>(machine.l2));
      });
}

}  // namespace r21d::cpu
