// A convolution over images in NHWC as a matrix product: pixels × (taps · channels) → columns.
//
// A block owns a tile of pixels × columns. The sum is taken in steps of 32 values, whose operands
// arrive by cp.async in a ring of stages: rows of x as the taps see them, zeros outside the image,
// and rows of the weights. Few channels (narrow) are gathered value by value, so that the sum runs
// over taps and channels without gaps between them.
//
// Training's kernels map what they read (prologue.cuh), sum what they write (channel_sums.cuh), cut
// long sums into parts, and run transposed for the gradient at the input.
#pragma once

#include <type_traits>

#include "cuda/channel_sums.cuh"

namespace r21d::cuda {

// Where the taps of the block's output pixels lie: those of a whole convolution, or of one phase of
// a transposed one.
struct ConvWalk {
  int rows, cols;                // of the output
  int stride_rows, stride_cols;  // of x, from one output row or column to the next
  int first_row, first_col;      // of x, that the first tap of output (0, 0) sees
  int tap_rows, tap_cols;
  int first_tap, tap_row_step, tap_col_step;  // transposed: in the weight's whole kernel
  int depth;
};

// One axis of a transposed convolution. Output o sees gradient row (o + padding - tap) / stride for
// the taps that leave no remainder. Those of phase o % stride are every stride-th one; in the
// weight, where the taps are reversed, they follow each other as the gradient's rows do.
struct PhaseAxis {
  int count, first, taps, first_tap;

  R21D_DEVICE PhaseAxis(int phase, int size, int kernel, int stride, int padding) {
    const int last = (phase + padding) % stride;  // the phase's last tap, its first one reversed
    count = (size - phase + stride - 1) / stride;
    taps = last < kernel ? (kernel - last + stride - 1) / stride : 0;
    first = (phase + padding - last) / stride - (taps - 1);
    first_tap = kernel - 1 - last - stride * (taps - 1);
  }
};

template <class Tile>
R21D_DEVICE ConvWalk walk_of(const ConvParams& p, int phase) {
  if constexpr (Tile::kTransposed) {
    const int across = p.stride_cols < p.out_cols ? p.stride_cols : p.out_cols;
    const PhaseAxis row(phase / across, p.out_rows, p.kernel_rows, p.stride_rows, p.padding_rows);
    const PhaseAxis col(phase % across, p.out_cols, p.kernel_cols, p.stride_cols, p.padding_cols);
    return {
        row.count,
        col.count,
        1,
        1,
        row.first,
        col.first,
        row.taps,
        col.taps,
        row.first_tap * p.kernel_cols + col.first_tap,
        p.stride_rows * p.kernel_cols,
        p.stride_cols,
        row.taps * col.taps * p.channels};
  }
  return {
      p.out_rows,
      p.out_cols,
      p.stride_rows,
      p.stride_cols,
      -p.padding_rows,
      -p.padding_cols,
      p.kernel_rows,
      p.kernel_cols,
      0,
      0,
      0,
      p.depth};
}

// The pixels and the chunk of each step that a thread copies.
template <class Tile>
struct ConvLoader {
  static constexpr int kRowsAtOnce = Tile::kThreads / Tile::kDepthChunks;
  static constexpr int kPixelRows = Tile::kPixels / kRowsAtOnce;
  static constexpr int kColumnRows = (Tile::kColumns + kRowsAtOnce - 1) / kRowsAtOnce;
  static constexpr int kFarOutside = -(1 << 30);  // no tap reaches back from it

  const ConvParams& p;
  const ConvWalk& walk;
  int first_row;        // of the thread, in the tile
  int chunk;            // of the thread, in a step
  int first_column;     // of the block
  int row[kPixelRows];  // of x under the first tap, in its image; far outside: no pixel
  int col[kPixelRows];
  int place[kPixelRows];  // the pixel of x there, counted over all images
  int at;                 // chunk of the sum that comes next
  int tap_row, tap_col, channel;
  // With a prologue: which copies of the last steps lie inside the image, the latest in the lowest
  // bits, and the channel of the step that is mapped next.
  uint32_t copied;
  int mapped_channel;

  R21D_DEVICE ConvLoader(
      const ConvParams& params, const ConvWalk& taps, int first_pixel, int column, int first_step)
      : p(params), walk(taps) {
    const int thread = static_cast<int>(ptx::thread_index());
    first_row = thread / Tile::kDepthChunks;
    chunk = thread % Tile::kDepthChunks;
    first_column = column;
    const int pixels = Tile::kTransposed
                           ? p.pixels / (p.out_rows * p.out_cols) * (walk.rows * walk.cols)
                           : p.pixels;
#pragma unroll
    for (int i = 0; i < kPixelRows; ++i) {
      const int index = first_pixel + first_row + i * kRowsAtOnce;
      const bool wanted = ptx::below(R21D_SITE("conv: pixels read"), index, pixels);
      // Behind a small phase there may be more images than 32 bits count pixels of.
      const int pixel = wanted || !Tile::kTransposed ? index : 0;
      const int image = pixel / (walk.rows * walk.cols);
      const int rest = pixel - image * (walk.rows * walk.cols);
      row[i] = rest / walk.cols * walk.stride_rows + walk.first_row;
      col[i] = rest % walk.cols * walk.stride_cols + walk.first_col;
      place[i] = (image * p.rows + row[i]) * p.cols + col[i];
      row[i] = wanted ? row[i] : kFarOutside;
    }
    at = first_step * Tile::kDepthChunks + chunk;
    tap_row = 0;
    tap_col = 0;
    channel = chunk * kChunk;
    if (Tile::kTrains && first_step > 0) {
      const int tap = at * kChunk / p.channels;
      channel = at * kChunk - tap * p.channels;
      tap_row = tap / walk.tap_cols;
      tap_col = tap - tap_row * walk.tap_cols;
    }
    wrap();
    copied = 0;
    mapped_channel = channel;
  }

  // Brings `channel` below the number of channels, tap by tap.
  R21D_DEVICE void wrap() {
    while (channel >= p.channels) {
      channel -= p.channels;
      if (++tap_col == walk.tap_cols) {
        tap_col = 0;
        ++tap_row;
      }
    }
  }

  R21D_DEVICE bool inside(int i, int dy, int dx) const {
    const int y = row[i] + dy;
    const int x = col[i] + dx;
    return ptx::below(R21D_SITE("conv: first row of the image"), -1, y) &&
           ptx::below(R21D_SITE("conv: last row of the image"), y, p.rows) &&
           ptx::below(R21D_SITE("conv: first column of the image"), -1, x) &&
           ptx::below(R21D_SITE("conv: last column of the image"), x, p.cols);
  }

  R21D_DEVICE int64_t source_offset(int i, int dy, int dx, int c) const {
    const int64_t pixel = int64_t{place[i]} + dy * p.cols + dx;
    return pixel * p.channels + c;
  }

  R21D_DEVICE const uint16_t* source(int i, int dy, int dx, int c) const {
    return static_cast<const uint16_t*>(p.x) + source_offset(i, dy, dx, c);
  }

  // Of the thread's chunk, in the first of its columns.
  R21D_DEVICE const uint16_t* weight_source() const {
    int64_t offset = int64_t{first_column + first_row} * p.depth;
    if constexpr (Tile::kTransposed) {
      const int tap = walk.first_tap + tap_row * walk.tap_row_step + tap_col * walk.tap_col_step;
      offset += int64_t{tap} * p.channels + channel;
    } else {
      offset += at * kChunk;
    }
    return static_cast<const uint16_t*>(p.weight) + offset;
  }

  // Starts the copies of the next step into `stage`.
  R21D_DEVICE void load(Address stage) {
    const Address mine = stage + first_row * Tile::kPitch + chunk * 16;
    const bool in_sum = ptx::below(R21D_SITE("conv: end of the sum"), at, walk.depth / kChunk);
#pragma unroll
    for (int i = 0; i < kPixelRows; ++i) {
      const Address to = mine + i * kRowsAtOnce * Tile::kPitch;
      if (!Tile::kTransposed && !Tile::kHasPrologue && p.narrow) {
        ptx::store_shared(to, gather(i));
        continue;
      }
      const bool here = in_sum && inside(i, tap_row, tap_col);
      const int64_t from = source_offset(i, tap_row, tap_col, channel);
      ptx::cp_async16(to, static_cast<const uint16_t*>(p.x) + from, here);
      if constexpr (Tile::kHasSecond) {
        if (p.prologue.second != nullptr) {
          const uint16_t* second = static_cast<const uint16_t*>(p.prologue.second);
          ptx::cp_async16(to + Tile::kSecond, second + from, here);
        }
      }
      if constexpr (Tile::kHasPrologue) {
        copied = copied << 1 | (here ? 1u : 0u);
      }
    }
    const uint16_t* weight = weight_source();
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

  // In the place of load() where no step is left.
  R21D_DEVICE void load_nothing() {
    copied <<= kPixelRows;
  }

  // The prologue, on the thread's own copies of the oldest step under way, which have arrived.
  template <class T>
  R21D_DEVICE void map(Address stage) {
    using Map = std::conditional_t<Tile::kHasSecond, NormBackward, NormRelu>;
    map_chunks<T, Map, kPixelRows>(
        p.prologue,
        mapped_channel,
        stage + first_row * Tile::kPitch + chunk * 16,
        kRowsAtOnce * Tile::kPitch,
        Tile::kSecond,
        copied >> (Tile::kStages - 2) * kPixelRows);
    mapped_channel += Tile::kDepthChunks * kChunk;
    while (mapped_channel >= p.channels) {
      mapped_channel -= p.channels;
    }
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
        if (++dx == walk.tap_cols) {
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

// The block's place in the launch.
struct ConvBlock {
  int first_pixel, first_column;
  int phase, part;

  R21D_DEVICE ConvBlock(const ConvParams& p, int pixels, int columns) {
    const ptx::Index3 block = ptx::block_index();
    first_pixel = static_cast<int>(block.x) * pixels;
    first_column = static_cast<int>(block.y) * columns;
    const int z = static_cast<int>(block.z);
    const bool in_parts = p.split.part == kOnePart;
    phase = in_parts ? z / p.split.parts : z;
    part = in_parts ? z - phase * p.split.parts : 0;
  }
};

// The sums of a thread, to or from the parts' memory. `block` counts the blocks of kAddUp.
template <int Threads, int RowTiles, int Tiles>
struct PartialSums {
  static constexpr int kValues = RowTiles * Tiles * 4;

  float* mine;
  int64_t between;  // parts

  R21D_DEVICE PartialSums(const Split& split, int64_t block, int part) {
    between = int64_t{kValues} * Threads;
    mine = split.partial + ((block * split.parts + part) * between + ptx::thread_index());
  }

  R21D_DEVICE void store(const float (&sums)[RowTiles][Tiles][4]) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      ptx::store_global(mine + v * Threads, sums[v / (Tiles * 4)][v / 4 % Tiles][v % 4]);
    }
  }

  R21D_DEVICE void add(float (&sums)[RowTiles][Tiles][4], int parts) const {
    const float* from = mine;
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        sums[v / (Tiles * 4)][v / 4 % Tiles][v % 4] += ptx::load_global(from + v * Threads);
      }
      from += between;
    }
  }
};

// The training kernels' output: finished rows, and the tile's sums per channel.
template <class T, class Tile>
R21D_DEVICE void write_tile(
    const ConvParams& p,
    const ConvBlock& block,
    const float (&sums)[2][Tile::kWarpColumns / 8][4],
    Address shared) {
  constexpr int kTiles = Tile::kWarpColumns / 8;
  const ConvWalk walk = walk_of<Tile>(p, ptx::anew(block.phase));
  const int warp = static_cast<int>(warp_index());
  const int warp_row = warp % Tile::kPixelWarps;
  const int warp_column = warp / Tile::kPixelWarps * Tile::kWarpColumns;
  const int images = p.pixels / (p.out_rows * p.out_cols);
  const int all = Tile::kTransposed ? images * (walk.rows * walk.cols) : p.pixels;
  const Address staging = shared + warp * Tile::kStaging;
  const Address first = shared + Tile::kWarps * Tile::kStaging;
  const Address second = first + Tile::kPixelWarps * Tile::kColumns * 4;
  const auto rows_of = [&](int w) {
    const int rest = all - block.first_pixel - w * kWarpPixels;
    return rest < 0 ? 0 : rest < kWarpPixels ? rest : kWarpPixels;
  };

  stage_rows(sums, staging);
  ptx::sync_warp(R21D_SITE("conv: the rows are staged"));
  const int mine = (warp_row * Tile::kColumns + warp_column) * 4;
  finish_rows<T, kTiles>(
      p.epilogue,
      p.sums,
      block.first_column + warp_column,
      rows_of(warp_row),
      staging,
      first + mine,
      second + mine,
      [&](int r) -> int64_t {
        const int pixel = block.first_pixel + warp_row * kWarpPixels + r;
        if (!ptx::below(R21D_SITE("conv: pixels finished"), pixel, all)) {
          return -1;
        }
        if constexpr (!Tile::kTransposed) {
          return pixel;
        }
        const int across = p.stride_cols < p.out_cols ? p.stride_cols : p.out_cols;
        const int image = pixel / (walk.rows * walk.cols);
        const int rest = pixel - image * (walk.rows * walk.cols);
        const int row = rest / walk.cols * p.stride_rows + block.phase / across;
        const int col = rest % walk.cols * p.stride_cols + block.phase % across;
        return (int64_t{image} * p.out_rows + row) * p.out_cols + col;
      });
  if (p.sums.kind == kNoReduction) {
    return;
  }
  ptx::sync_threads(R21D_SITE("conv: the warps' sums are written"));
  const int64_t entry = int64_t{block.phase} * ptx::grid_size().x + ptx::block_index().x;
  for (int c = static_cast<int>(ptx::thread_index()); c < Tile::kColumns; c += Tile::kThreads) {
    const int column = block.first_column + c;
    if (!ptx::below(R21D_SITE("conv: columns summed"), column, p.epilogue.columns)) {
      break;
    }
    const Merged merged =
        merge_column(p.sums.kind, Tile::kPixelWarps, rows_of, [&](int w, int which) {
          const Address from = which == 0 ? first : second;
          return ptx::load_shared<float>(from + (w * Tile::kColumns + c) * 4);
        });
    const int64_t place = entry * p.epilogue.columns + column;
    ptx::store_global(p.sums.first + place, merged.first);
    ptx::store_global(p.sums.second + place, merged.second);
  }
}

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
  const ConvBlock block(p, Tile::kPixels, Tile::kColumns);
  const ConvWalk walk = walk_of<Tile>(p, block.phase);

  constexpr int kStepDepth = Tile::kDepthChunks * kChunk;
  int step = 0;
  int steps = (walk.depth + kStepDepth - 1) / kStepDepth;
  if constexpr (Tile::kTrains) {
    if (p.split.part == kOnePart) {
      const int most = (steps + p.split.parts - 1) / p.split.parts;
      step = block.part * most < steps ? block.part * most : steps;
      steps = step + most < steps ? step + most : steps;
    } else if (p.split.part == kAddUp) {
      steps = 0;
    }
  }
  ConvLoader<Tile> loader(p, walk, block.first_pixel, block.first_column, step);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (step + s < steps) {
      loader.load(ring + s * Tile::kStageBytes);
    } else if (Tile::kHasPrologue) {
      loader.load_nothing();
    }
    ptx::cp_async_commit(R21D_SITE("conv: first steps"));
  }

  float sums[2][kTiles][4];
  clear(sums);
  const Address a_at = ring + (warp_row + a_row(lane)) * Tile::kPitch + a_chunk(lane) * 16;
  const Address b_at =
      ring + (Tile::kPixels + warp_column + b_row(lane)) * Tile::kPitch + b_chunk(lane) * 16;
  int current = 0;
  for (; step < steps; ++step) {
    const Address here =
        ptx::stage(R21D_SITE("conv: stage to read"), current, kStages) * Tile::kStageBytes;
    ptx::cp_async_wait<kStages - 2>(R21D_SITE("conv: this step has arrived"));
    if constexpr (Tile::kHasPrologue) {
      loader.template map<T>(ring + here);
    }
    ptx::sync_threads(R21D_SITE("conv: for all, and the step before is read"));
    if (step + kStages - 1 < steps) {
      const int next = ptx::stage(
          R21D_SITE("conv: stage to fill"), current == 0 ? kStages - 1 : current - 1, kStages);
      loader.load(ring + next * Tile::kStageBytes);
    } else if (Tile::kHasPrologue) {
      loader.load_nothing();
    }
    ptx::cp_async_commit(R21D_SITE("conv: later steps"));
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

  if constexpr (Tile::kTrains) {
    if (p.split.part != kWhole) {
      const ptx::Index3 grid = ptx::grid_size();
      const ptx::Index3 index = ptx::block_index();
      const int64_t place = (int64_t{block.phase} * grid.y + index.y) * grid.x + index.x;
      const PartialSums<Tile::kThreads, 2, kTiles> partial(p.split, place, block.part);
      if (p.split.part == kOnePart) {
        partial.store(sums);
        return;
      }
      partial.add(sums, p.split.parts);
    }
  }
  ptx::sync_threads(R21D_SITE("conv: the ring is read and becomes staging"));
  if constexpr (Tile::kTrains) {
    write_tile<T, Tile>(p, block, sums, ring);
  } else {
    const Address staging = ring + warp * Tile::kStaging;
    const int first_column = block.first_column + warp_column;
    store_tile<T>(p.epilogue, sums, first_column, staging, [&](int r) -> int64_t {
      const int pixel = block.first_pixel + warp_row + r;
      return ptx::below(R21D_SITE("conv: pixels stored"), pixel, p.pixels) ? pixel : -1;
    });
  }
}

}  // namespace r21d::cuda
