// The whole operator in one kernel: y = temporal(relu(spatial(x) * scale + shift)) and the
// epilogue.
//
// A block owns a tile of pixels of one clip, 64 of the output's channels and a chunk of output
// frames, and walks over the frames that those see. Of each frame it makes v in slices of M
// (product 1, from the band), narrows it to 16 bits in shared memory, and multiplies it with every
// temporal tap at once (product 2), into the sums of the output frames that see it, in registers.
// The weights of both products pass through one ring of stages, a unit at a time, in the order of
// their use.
#pragma once

#include "cuda/band.cuh"
#include "cuda/tile.cuh"

namespace r21d::cuda {

// A position in the walk: at `step` output frame `step` is opened, whose first frames are
// step * stride + j - padding for j < stride. sums[a] belongs to output frame step - a, and sees
// that frame through tap a * stride + j.
template <class Tile>
struct FrameWalk {
  const FusedParams& p;
  int first, end;  // output frames of the block
  int step, j;

  R21D_DEVICE FrameWalk(const FusedParams& params, int chunk)
      : p(params), first(chunk * params.chunk), step(first), j(0) {
    end = first + p.chunk < p.out_frames ? first + p.chunk : p.out_frames;
  }

  R21D_DEVICE int frame() const {
    return step * p.stride_frames + j - p.padding_frames;
  }

  R21D_DEVICE bool sees(int a) const {
    const int out = step - a;
    return ptx::below(
               R21D_SITE("fused: temporal taps"), a * p.stride_frames + j, p.kernel_frames) &&
           out >= first && out < end;
  }

  // Whether the frame exists and an output frame of the block sees it.
  R21D_DEVICE bool wanted() const {
    if (!ptx::below(R21D_SITE("fused: first frame"), -1, frame()) ||
        !ptx::below(R21D_SITE("fused: last frame"), frame(), p.frames)) {
      return false;
    }
    bool any = false;
#pragma unroll
    for (int a = 0; a < Tile::kLive; ++a) {
      any = any || sees(a);
    }
    return any;
  }

  R21D_DEVICE bool done() const {
    return step >= end + Tile::kLive - 1;
  }

  R21D_DEVICE void advance() {
    if (++j >= p.stride_frames) {
      j = 0;
      ++step;
    }
  }

  // On to the next frame that is wanted, this one included.
  R21D_DEVICE void settle() {
    while (!done() && !wanted()) {
      advance();
    }
  }
};

// Fills the ring: unit after unit, slice after slice, frame after frame.
template <class Tile>
struct WeightFeed {
  const FusedParams& p;
  FrameWalk<Tile> walk;
  Address ring;
  int first_column;  // of O
  int depth_units;   // of the first product
  int slice;         // first channel of M
  int unit;
  int slot;

  R21D_DEVICE WeightFeed(const FusedParams& params, Address at, int chunk, int column)
      : p(params), walk(params, chunk), ring(at), first_column(column), slice(0), unit(0), slot(0) {
    depth_units = (p.depth + Tile::kDepthChunks * kChunk - 1) / (Tile::kDepthChunks * kChunk);
    walk.settle();
  }

  R21D_DEVICE void load_spatial(Address to) const {
    const uint16_t* weight = static_cast<const uint16_t*>(p.spatial_weight);
    constexpr int kRowsAtOnce = Tile::kThreads / Tile::kDepthChunks;
    const int thread = static_cast<int>(ptx::thread_index());
    const int chunk = thread % Tile::kDepthChunks;
    const int at = unit * Tile::kDepthChunks + chunk;
    const bool in_sum =
        ptx::below(R21D_SITE("fused: depth of the spatial weight"), at, p.depth / kChunk);
    const int first_row = thread / Tile::kDepthChunks;
    const uint16_t* from = weight + (int64_t{slice + first_row} * p.depth + at * kChunk);
#pragma unroll 3
    for (int rows = 0; rows < Tile::kMids; rows += kRowsAtOnce) {
      const int row = rows + first_row;
      const bool here =
          in_sum && ptx::below(R21D_SITE("fused: rows of the spatial weight"), slice + row, p.mid);
      if (Tile::kMids % kRowsAtOnce == 0 ||
          ptx::below(R21D_SITE("fused: rows of a spatial unit"), row, Tile::kMids)) {
        ptx::cp_async16(to + row * Tile::kDepthPitch + chunk * 16, from, here);
      }
      from += int64_t{kRowsAtOnce} * p.depth;
    }
  }

  R21D_DEVICE void load_temporal(Address to) const {
    constexpr int kRows = Tile::kLive * Tile::kColumns;
    const uint16_t* weight = static_cast<const uint16_t*>(p.temporal_weight);
    const int thread = static_cast<int>(ptx::thread_index());
    const int first = slice + (unit - depth_units) * Tile::kSliceChunks * kChunk;
#pragma unroll 1
    for (int i = 0; i < kRows * Tile::kSliceChunks; i += Tile::kThreads) {
      const int row = (i + thread) / Tile::kSliceChunks;
      const int chunk = (i + thread) % Tile::kSliceChunks;
      const int a = row / Tile::kColumns;
      const int column = first_column + row % Tile::kColumns;
      const int m = first + chunk * kChunk;
      if (kRows * Tile::kSliceChunks % Tile::kThreads == 0 ||
          ptx::below(R21D_SITE("fused: rows of a temporal unit"), row, kRows)) {
        const bool here =
            walk.sees(a) &&
            ptx::below(
                R21D_SITE("fused: rows of the temporal weight"), column, p.epilogue.columns) &&
            ptx::below(
                R21D_SITE("fused: depth of the temporal weight"), m / kChunk, p.mid_pitch / kChunk);
        const int tap = a * p.stride_frames + walk.j;
        const int64_t offset = (int64_t{column} * p.kernel_frames + tap) * p.mid_pitch + m;
        ptx::cp_async16(to + row * Tile::kSlicePitch + chunk * 16, weight + offset, here);
      }
    }
  }

  // Starts the copies of the next unit, if there is one.
  R21D_DEVICE void load() {
    if (walk.done()) {
      return;
    }
    const Address to = ring + ptx::stage(R21D_SITE("fused: stage to fill"), slot, Tile::kStages) *
                                  Tile::kStageBytes;
    slot = slot + 1 == Tile::kStages ? 0 : slot + 1;
    if (unit < depth_units) {
      load_spatial(to);
    } else {
      load_temporal(to);
    }
    if (++unit == depth_units + Tile::kSliceUnits) {
      unit = 0;
      slice += Tile::kMids;
      if (!ptx::below(R21D_SITE("fused: slices to load"), slice, p.mid)) {
        slice = 0;
        walk.advance();
        walk.settle();
      }
    }
  }
};

// v of a slice from the first product's sums: normalized, ReLU, 16 bits, zero beyond M.
template <class T, class Tile, int Tiles>
R21D_DEVICE void store_mid(
    const FusedParams& p,
    const float (&sums)[2][Tiles][4],
    int slice,
    int row,
    int column,
    Address mid) {
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
    const int c = column + n * 8 + lane % 4 * 2;
    const int m = slice + c;
    const bool first = ptx::below(R21D_SITE("fused: a pair's first channel of M"), m, p.mid);
    const bool second = ptx::below(R21D_SITE("fused: a pair's second channel of M"), m + 1, p.mid);
    const float scale0 = first ? ptx::load_global(p.scale + m) : 0.0f;
    const float shift0 = first ? ptx::load_global(p.shift + m) : 0.0f;
    const float scale1 = second ? ptx::load_global(p.scale + m + 1) : 0.0f;
    const float shift1 = second ? ptx::load_global(p.shift + m + 1) : 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float v0 = relu(sums[i][n][half * 2] * scale0 + shift0);
        const float v1 = relu(sums[i][n][half * 2 + 1] * scale1 + shift1);
        const Address to = mid + (row + i * 16 + half * 8 + lane / 4) * Tile::kMidPitch + c * 2;
        ptx::store_shared(to, ptx::pack2<T>(first ? v0 : 0.0f, second ? v1 : 0.0f));
      }
    }
  }
}

template <class T, class Tile>
R21D_KERNEL(Tile::kThreads, Tile::kBlocks)
fused_kernel(const FusedParams p) {
  constexpr int kLive = Tile::kLive;
  constexpr int kMidTiles = Tile::kMids / kColumnWarps / 8;
  constexpr int kOutTiles = Tile::kColumns / kColumnWarps / 8;
  const int lane = static_cast<int>(lane_index());
  const int warp = static_cast<int>(warp_index());
  const int warp_row = warp % Tile::kPixelWarps * kWarpPixels;
  const int warp_column = warp / Tile::kPixelWarps;  // half of the columns
  const int chunk = static_cast<int>(ptx::block_index().y);
  const int first_column = static_cast<int>(ptx::block_index().z) * Tile::kColumns;

  const Address ring = ptx::dynamic_shared();
  const Address mid = ring + Tile::kStages * Tile::kStageBytes;
  const Address bands = mid + Tile::kMidBytes;
  const Address raw = bands + p.bands * p.band_bytes;

  // Where the lane's rows of operand a begin in a band, for its two tiles of 16 pixels.
  Address pixel[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const PixelRange range(p, Tile::kPixels);
    const int row = warp_row + i * 16 + a_row(lane);
    const int at = range.first + row < range.count ? range.first + row : range.first;
    const int place = p.narrow ? at - range.first
                               : (at / p.out_cols - range.row) * p.stride_rows * p.band_cols +
                                     at % p.out_cols * p.stride_cols;
    pixel[i] = place * band_pitch(p) + a_chunk(lane) * 16;
  }
  const int groups = p.band_channels / 16;  // steps of the first product's sum within a tap
  const int taps_in_row = p.narrow ? 1 : p.kernel_cols;

  float sums[kLive][2][kOutTiles][4];
#pragma unroll
  for (int a = 0; a < kLive; ++a) {
    clear(sums[a]);
  }

  WeightFeed<Tile> feed(p, ring, chunk, first_column);
  FrameWalk<Tile> walk(p, chunk);
  int band = 0;  // in use, of p.bands
  int slot = 0;  // to read
  if (!p.narrow && !feed.walk.done()) {
    load_band<Tile>(p, feed.walk.frame(), bands);
  }
#pragma unroll
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    feed.load();
    ptx::cp_async_commit(R21D_SITE("fused: first units"));
  }

  // The next unit, which has arrived; `free_band`: the band that is not in use can be filled.
  const auto next_unit = [&](bool free_band) {
    ptx::cp_async_wait<Tile::kStages - 2>(R21D_SITE("fused: this unit has arrived"));
    ptx::sync_threads(R21D_SITE("fused: for all, and the unit before is read"));
    if (free_band && !p.narrow) {
      FrameWalk<Tile> ahead = walk;
      ahead.advance();
      ahead.settle();
      if (!ahead.done()) {
        const int other = ptx::stage(R21D_SITE("fused: band to fill"), p.bands - 1 - band, p.bands);
        load_band<Tile>(p, ahead.frame(), bands + other * p.band_bytes);
      }
    }
    feed.load();
    ptx::cp_async_commit(R21D_SITE("fused: later units"));
    const int current = ptx::stage(R21D_SITE("fused: stage to read"), slot, Tile::kStages);
    slot = slot + 1 == Tile::kStages ? 0 : slot + 1;
    return ring + current * Tile::kStageBytes;
  };

  for (; !walk.done(); walk.advance()) {
    if (walk.wanted()) {
      if (p.narrow) {
        load_raw<Tile>(p, walk.frame(), raw);
        ptx::sync_threads(R21D_SITE("fused: the raw band is there"));
        unfold<Tile>(p, raw, bands);
      }
      const Address here =
          bands + ptx::stage(R21D_SITE("fused: band to read"), band, p.bands) * p.band_bytes;
      for (int slice = 0; ptx::below(R21D_SITE("fused: slices"), slice, p.mid);
           slice += Tile::kMids) {
        float u[2][kMidTiles][4];
        clear(u);
        Address tap = here;
        int group = 0;
        int tap_col = 0;
        for (int unit = 0; unit < feed.depth_units; ++unit) {
          const Address weights = next_unit(p.bands == 2 && slice == 0 && unit == 0) +
                                  (warp_column * kMidTiles * 8 + b_row(lane)) * Tile::kDepthPitch +
                                  b_chunk(lane) * 16;
#pragma unroll
          for (int k = 0; k < Tile::kDepthChunks; k += 2) {
            if ((unit * Tile::kDepthChunks + k) * kChunk < p.depth) {
              const ptx::Fragment4 a[2] = {
                  ptx::ldmatrix_x4(R21D_SITE("band"), tap + pixel[0] + group * 32),
                  ptx::ldmatrix_x4(R21D_SITE("band"), tap + pixel[1] + group * 32)};
              multiply<T>(u, a, weights + k * 16, Tile::kDepthPitch);
              if (++group == groups) {
                group = 0;
                tap += band_pitch(p);
                if (++tap_col == taps_in_row) {
                  tap_col = 0;
                  tap += (p.band_cols - taps_in_row) * band_pitch(p);
                }
              }
            }
          }
        }
        store_mid<T, Tile>(p, u, slice, warp_row, warp_column * kMidTiles * 8, mid);

        const bool last =
            !ptx::below(R21D_SITE("fused: the last slice"), slice + Tile::kMids, p.mid);
#pragma unroll 1
        for (int unit = 0; unit < Tile::kSliceUnits; ++unit) {
          const Address weights = next_unit(p.bands == 1 && last && unit == 0) +
                                  (warp_column * kOutTiles * 8 + b_row(lane)) * Tile::kSlicePitch +
                                  b_chunk(lane) * 16;
          const Address v = mid + (warp_row + a_row(lane)) * Tile::kMidPitch +
                            (unit * Tile::kSliceChunks + a_chunk(lane)) * 16;
#pragma unroll
          for (int k = 0; k < Tile::kSliceChunks; k += 2) {
            const ptx::Fragment4 a[2] = {
                ptx::ldmatrix_x4(R21D_SITE("v"), v + k * 16),
                ptx::ldmatrix_x4(R21D_SITE("v"), v + k * 16 + 16 * Tile::kMidPitch)};
#pragma unroll
            for (int t = 0; t < kLive; ++t) {
              if (walk.sees(t)) {
                const Address tap_weights = weights + t * Tile::kColumns * Tile::kSlicePitch;
                multiply<T>(sums[t], a, tap_weights + k * 16, Tile::kSlicePitch);
              }
            }
          }
        }
      }
      band = p.bands - 1 - band;
    }

    // After the last frame that opens with this step, its oldest output frame is complete.
    if (walk.j + 1 < p.stride_frames) {
      continue;
    }
    const int out_frame = walk.step - (kLive - 1);
    if (out_frame >= walk.first) {
      ptx::sync_threads(R21D_SITE("fused: v is read and becomes staging"));
      const PixelRange range(p, Tile::kPixels);
      const Address staging = mid + warp * staging_bytes(Tile::kColumns / kColumnWarps);
      const int column = first_column + warp_column * kOutTiles * 8;
      store_tile<T>(p.epilogue, sums[kLive - 1], column, staging, [&](int r) -> int64_t {
        const int at = range.first + warp_row + r;
        const int64_t frame = int64_t{range.clip} * p.out_frames + out_frame;
        return ptx::below(R21D_SITE("fused: pixels stored"), at, range.count)
                   ? frame * range.count + at
                   : -1;
      });
    }
#pragma unroll
    for (int a = kLive - 1; a > 0; --a) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[a][i][n][e] = sums[a - 1][i][n][e];
          }
        }
      }
    }
    clear(sums[0]);
  }
}

}  // namespace r21d::cuda
