// A convolution over images in NHWC as a matrix product: pixels × (taps · channels) → columns.
//
// A block owns a tile of pixels × columns. The sum is taken in steps of 32 values, whose operands
// arrive by cp.async in a ring of stages: rows of x as the taps see them, zeros outside the image,
// and rows of the weights. Few channels (narrow) are gathered value by value, so that the sum runs
// over taps and channels without gaps between them.
#pragma once

#include "cuda/tile.cuh"

namespace r21d::cuda {

// The pixels and the chunk of each step that a thread copies.
template <class Tile>
struct ConvLoader {
  static constexpr int kRowsAtOnce = Tile::kThreads / Tile::kDepthChunks;
  static constexpr int kPixelRows = Tile::kPixels / kRowsAtOnce;
  static constexpr int kColumnRows = (Tile::kColumns + kRowsAtOnce - 1) / kRowsAtOnce;

  const ConvParams& p;
  int first_row;     // of the thread, in the tile
  int chunk;         // of the thread, in a step
  int first_column;  // of the block
  bool wanted[kPixelRows];
  int row[kPixelRows];  // of x under tap (0, 0), in its image
  int col[kPixelRows];
  int place[kPixelRows];  // the pixel of x there, counted over all images
  int at;                 // chunk of the sum that comes next
  int tap_row, tap_col, channel;

  R21D_DEVICE ConvLoader(const ConvParams& params, int first_pixel, int column) : p(params) {
    const int thread = static_cast<int>(ptx::thread_index());
    first_row = thread / Tile::kDepthChunks;
    chunk = thread % Tile::kDepthChunks;
    first_column = column;
#pragma unroll
    for (int i = 0; i < kPixelRows; ++i) {
      const int pixel = first_pixel + first_row + i * kRowsAtOnce;
      wanted[i] = ptx::below(R21D_SITE("conv: pixels read"), pixel, p.pixels);
      const int image = pixel / (p.out_rows * p.out_cols);
      const int rest = pixel - image * (p.out_rows * p.out_cols);
      row[i] = rest / p.out_cols * p.stride_rows - p.padding_rows;
      col[i] = rest % p.out_cols * p.stride_cols - p.padding_cols;
      place[i] = (image * p.rows + row[i]) * p.cols + col[i];
    }
    at = chunk;
    tap_row = 0;
    tap_col = 0;
    channel = chunk * kChunk;
    wrap();
  }

  // Brings `channel` below the number of channels, tap by tap.
  R21D_DEVICE void wrap() {
    while (channel >= p.channels) {
      channel -= p.channels;
      if (++tap_col == p.kernel_cols) {
        tap_col = 0;
        ++tap_row;
      }
    }
  }

  R21D_DEVICE bool inside(int i, int dy, int dx) const {
    const int y = row[i] + dy;
    const int x = col[i] + dx;
    return wanted[i] && ptx::below(R21D_SITE("conv: first row of the image"), -1, y) &&
           ptx::below(R21D_SITE("conv: last row of the image"), y, p.rows) &&
           ptx::below(R21D_SITE("conv: first column of the image"), -1, x) &&
           ptx::below(R21D_SITE("conv: last column of the image"), x, p.cols);
  }

  R21D_DEVICE const uint16_t* source(int i, int dy, int dx, int c) const {
    const int64_t pixel = int64_t{place[i]} + dy * p.cols + dx;
    return static_cast<const uint16_t*>(p.x) + (pixel * p.channels + c);
  }

  // Starts the copies of the next step into `stage`.
  R21D_DEVICE void load(Address stage) {
    const Address mine = stage + first_row * Tile::kPitch + chunk * 16;
    const bool in_sum = ptx::below(R21D_SITE("conv: end of the sum"), at, p.depth / kChunk);
#pragma unroll
    for (int i = 0; i < kPixelRows; ++i) {
      const Address to = mine + i * kRowsAtOnce * Tile::kPitch;
      if (p.narrow) {
        ptx::store_shared(to, gather(i));
      } else {
        const bool here = in_sum && inside(i, tap_row, tap_col);
        ptx::cp_async16(to, source(i, tap_row, tap_col, channel), here);
      }
    }
    const uint16_t* weight = static_cast<const uint16_t*>(p.weight) +
                             (int64_t{first_column + first_row} * p.depth + at * kChunk);
#pragma unroll
    for (int i = 0; i < kColumnRows; ++i) {
      const int r = first_row + i * kRowsAtOnce;
      const bool here =
          in_sum &&
          ptx::below(R21D_SITE("conv: columns read"), first_column + r, p.epilogue.columns);
      if (Tile::kColumns % kRowsAtOnce == 0 ||
          ptx::below(R21D_SITE("conv: columns of the tile"), r, Tile::kColumns)) {
        const Address to = mine + (Tile::kPixels + i * kRowsAtOnce) * Tile::kPitch;
        ptx::cp_async16(to, weight, here);
      }
      weight += int64_t{kRowsAtOnce} * p.depth;
    }
    at += Tile::kDepthChunks;
    channel += Tile::kDepthChunks * kChunk;
    wrap();
  }

  // Eight values of the sum from `channel` of the tap on, tap after tap; all are asked for before
  // one is used.
  R21D_DEVICE Vec4 gather(int i) const {
    uint16_t value[kChunk];
    int dy = tap_row;
    int dx = tap_col;
    int c = channel;
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      value[v] = 0;
      if (ptx::below(R21D_SITE("conv: last tap"), dy, p.kernel_rows) && inside(i, dy, dx)) {
        value[v] = ptx::load_global(source(i, dy, dx, c));
      }
      if (++c == p.channels) {
        c = 0;
        if (++dx == p.kernel_cols) {
          dx = 0;
          ++dy;
        }
      }
    }
    Vec4 values{};
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      values.x[v / 2] |= static_cast<uint32_t>(value[v]) << (v % 2 * 16);
    }
    return values;
  }
};

template <class T, class Tile>
R21D_KERNEL(Tile::kThreads, Tile::kBlocks)
conv_kernel(const ConvParams p) {
  constexpr int kTiles = Tile::kWarpColumns / 8;
  constexpr int kStages = Tile::kStages;
  const Address ring = ptx::dynamic_shared();
  const int lane = static_cast<int>(lane_index());
  const int warp = static_cast<int>(warp_index());
  const int warp_row = warp % Tile::kPixelWarps * kWarpPixels;
  const int warp_column = warp / Tile::kPixelWarps * Tile::kWarpColumns;
  const int first_pixel = static_cast<int>(ptx::block_index().x) * Tile::kPixels;
  const int first_column = static_cast<int>(ptx::block_index().y) * Tile::kColumns;

  ConvLoader<Tile> loader(p, first_pixel, first_column);
  const int steps = (p.depth + Tile::kDepthChunks * kChunk - 1) / (Tile::kDepthChunks * kChunk);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) {
      loader.load(ring + s * Tile::kStageBytes);
    }
    ptx::cp_async_commit(R21D_SITE("conv: first steps"));
  }

  float sums[2][kTiles][4];
  clear(sums);
  const Address a_at = ring + (warp_row + a_row(lane)) * Tile::kPitch + a_chunk(lane) * 16;
  const Address b_at =
      ring + (Tile::kPixels + warp_column + b_row(lane)) * Tile::kPitch + b_chunk(lane) * 16;
  int current = 0;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>(R21D_SITE("conv: this step has arrived"));
    ptx::sync_threads(R21D_SITE("conv: for all, and the step before is read"));
    if (step + kStages - 1 < steps) {
      const int next =
          ptx::stage(R21D_SITE("conv: stage to fill"), (step + kStages - 1) % kStages, kStages);
      loader.load(ring + next * Tile::kStageBytes);
    }
    ptx::cp_async_commit(R21D_SITE("conv: later steps"));
    const Address here =
        ptx::stage(R21D_SITE("conv: stage to read"), current, kStages) * Tile::kStageBytes;
#pragma unroll
    for (int k = 0; k < Tile::kDepthChunks; k += 2) {
      const Address from = a_at + here + k * 16;
      const ptx::Fragment4 a[2] = {
          ptx::ldmatrix_x4(R21D_SITE("a"), from),
          ptx::ldmatrix_x4(R21D_SITE("a"), from + 16 * Tile::kPitch)};
      multiply<T>(sums, a, b_at + here + k * 16, Tile::kPitch);
    }
    current = current + 1 == kStages ? 0 : current + 1;
  }

  ptx::sync_threads(R21D_SITE("conv: the ring is read and becomes staging"));
  const Address staging = ring + warp * staging_bytes(Tile::kWarpColumns);
  store_tile<T>(p.epilogue, sums, first_column + warp_column, staging, [&](int r) -> int64_t {
    const int pixel = first_pixel + warp_row + r;
    return ptx::below(R21D_SITE("conv: pixels stored"), pixel, p.pixels) ? pixel : -1;
  });
}

}  // namespace r21d::cuda
