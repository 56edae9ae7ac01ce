// The gradient of a convolution's weight as a matrix product summed over pixels: the gradient at
// the output, transposed, × the input as the taps see it.
//
// A block owns a tile of the output's channels × (tap, input channel) and a part of the pixels, in
// steps of 32. Both operands arrive by cp.async with their channels innermost, are mapped by their
// prologues where they lie (the gradient of BatchNorm; v from u), and reach the tensor cores
// through transposing loads. The parts' sums are added by the same kernel, run once more (kAddUp).
#pragma once

#include <type_traits>

#include "cuda/conv.cuh"

namespace r21d::cuda {

// A pixel of the output that moves on by a step at a time, and the pixel of the input under tap
// (0, 0) of it.
struct OutputPixel {
  int index;            // over all images
  int image, row, col;  // of the output

  R21D_DEVICE OutputPixel(const WeightGradientParams& p, int pixel) : index(pixel) {
    const int size = p.out_rows * p.out_cols;
    image = pixel / size;
    const int rest = pixel - image * size;
    row = rest / p.out_cols;
    col = rest - row * p.out_cols;
  }

  // `rows` and `cols` are the step as whole rows and the pixels beyond them.
  R21D_DEVICE void advance(const WeightGradientParams& p, int step, int rows, int cols) {
    index += step;
    col += cols;
    row += rows;
    if (col >= p.out_cols) {
      col -= p.out_cols;
      ++row;
    }
    while (row >= p.out_rows) {
      row -= p.out_rows;
      ++image;
    }
  }
};

template <class Tile>
struct WeightLoader {
  static constexpr int kRowChunks = Tile::kRows / kChunk;
  static constexpr int kColumnChunks = Tile::kColumns / kChunk;
  static constexpr int kPixelsAtOnce = Tile::kThreads / kColumnChunks;
  static constexpr int kPixels = Tile::kDepth / kPixelsAtOnce;
  static_assert(
      kColumnChunks * kPixelsAtOnce == Tile::kThreads && kPixelsAtOnce * kPixels == Tile::kDepth,
      "every thread copies columns, and all are copied");
  static_assert(kRowChunks <= kColumnChunks, "there are threads enough to copy the rows");

  const WeightGradientParams& p;
  // Of the thread, in the tile's rows and in its columns: the chunk, and the first line, of a
  // pixel, in a step. Rows of fewer chunks leave the last threads without one.
  int row_chunk, row_line;
  int column_chunk, column_line;
  bool has_rows;
  int end;  // of the part's pixels
  int row;  // channel of the gradient
  int tap_row, tap_col, channel;
  bool row_wanted, column_wanted;
  int step_rows, step_cols;
  OutputPixel pixel;                     // the first of the thread's columns in the next step
  uint32_t rows_copied, columns_copied;  // as ConvLoader::copied

  R21D_DEVICE WeightLoader(
      const WeightGradientParams& params, int first_row, int first_column, int first, int last)
      : p(params), pixel(params, first + static_cast<int>(ptx::thread_index()) / kColumnChunks) {
    const int thread = static_cast<int>(ptx::thread_index());
    row_chunk = thread % kRowChunks;
    row_line = thread / kRowChunks;
    column_chunk = thread % kColumnChunks;
    column_line = thread / kColumnChunks;
    has_rows = kRowChunks == kColumnChunks ||
               ptx::below(R21D_SITE("weight: lines of the rows"), row_line, kPixelsAtOnce);
    end = last;
    row = first_row + row_chunk * kChunk;
    row_wanted = ptx::below(R21D_SITE("weight: rows read"), row / kChunk, p.rows_pitch / kChunk);
    const int column = first_column + column_chunk * kChunk;
    column_wanted = column < p.column_count;
    const int tap = column / p.channels;
    channel = column - tap * p.channels;
    tap_row = tap / p.kernel_cols;
    tap_col = tap - tap_row * p.kernel_cols;
    step_rows = kPixelsAtOnce / p.out_cols;
    step_cols = kPixelsAtOnce - step_rows * p.out_cols;
    rows_copied = 0;
    columns_copied = 0;
  }

  R21D_DEVICE bool inside(int y, int x) const {
    return ptx::below(R21D_SITE("weight: first row of the image"), -1, y) &&
           ptx::below(R21D_SITE("weight: last row of the image"), y, p.image_rows) &&
           ptx::below(R21D_SITE("weight: first column of the image"), -1, x) &&
           ptx::below(R21D_SITE("weight: last column of the image"), x, p.image_cols);
  }

  // The thread's first chunks of a stage.
  R21D_DEVICE Address rows_at(Address stage) const {
    return stage + row_line * Tile::kRowsPitch + row_chunk * 16;
  }

  R21D_DEVICE Address columns_at(Address stage) const {
    return stage + Tile::kColumnsAt + column_line * Tile::kColumnsPitch + column_chunk * 16;
  }

  R21D_DEVICE void load_rows(Address stage, int i) {
    const int at = pixel.index + (row_line - column_line);
    const bool there = ptx::below(R21D_SITE("weight: pixels of the rows"), at, end);
    const bool here = has_rows && there && row_wanted;
    if (has_rows) {
      const Address to = rows_at(stage) + i * kPixelsAtOnce * Tile::kRowsPitch;
      const int64_t from = int64_t{at} * p.rows_pitch + row;
      ptx::cp_async16(to, static_cast<const uint16_t*>(p.rows) + from, here);
      if constexpr (Tile::kHasRows) {
        if (p.rows_prologue.second != nullptr) {
          const uint16_t* second = static_cast<const uint16_t*>(p.rows_prologue.second);
          ptx::cp_async16(to + Tile::kSecond, second + from, here);
        }
      }
    }
    if constexpr (Tile::kHasRows) {
      rows_copied = rows_copied << 1 | (here ? 1u : 0u);
    }
  }

  // Starts the copies of the next step into `stage`.
  R21D_DEVICE void load(Address stage) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      load_rows(stage, i);
      const bool there = ptx::below(R21D_SITE("weight: pixels of the part"), pixel.index, end);
      const Address columns_to = columns_at(stage) + i * kPixelsAtOnce * Tile::kColumnsPitch;
      const int y = pixel.row * p.stride_rows - p.padding_rows;
      const int x = pixel.col * p.stride_cols - p.padding_cols;
      const int64_t image = int64_t{pixel.image} * p.image_rows;
      if (!Tile::kHasColumns && p.narrow) {
        ptx::store_shared(columns_to, gather(there, image, y, x));
      } else {
        const bool here = there && column_wanted && inside(y + tap_row, x + tap_col);
        const int64_t from = ((image + y + tap_row) * p.image_cols + x + tap_col) * p.channels;
        const uint16_t* columns = static_cast<const uint16_t*>(p.columns) + (from + channel);
        ptx::cp_async16(columns_to, columns, here);
        if constexpr (Tile::kHasColumns) {
          columns_copied = columns_copied << 1 | (here ? 1u : 0u);
        }
      }
      pixel.advance(p, kPixelsAtOnce, step_rows, step_cols);
    }
  }

  R21D_DEVICE void load_nothing() {
    rows_copied <<= kPixels;
    columns_copied <<= kPixels;
  }

  // Eight values of the input from the thread's column on, tap after tap.
  R21D_DEVICE Vec4 gather(bool there, int64_t image, int y, int x) const {
    uint16_t value[kChunk];
    int dy = tap_row;
    int dx = tap_col;
    int c = channel;
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      value[v] = 0;
      if (there && dy < p.kernel_rows && inside(y + dy, x + dx)) {
        const int64_t from = ((image + y + dy) * p.image_cols + x + dx) * p.channels + c;
        value[v] = ptx::load_global(static_cast<const uint16_t*>(p.columns) + from);
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

  // The prologues, on the thread's own copies of the oldest step under way, which have arrived.
  template <class T>
  R21D_DEVICE void map(Address stage) const {
    constexpr int kOldest = (Tile::kStages - 2) * kPixels;
    if constexpr (Tile::kHasRows) {
      map_chunks<T, NormBackward, kPixels>(
          p.rows_prologue,
          row,
          rows_at(stage),
          kPixelsAtOnce * Tile::kRowsPitch,
          Tile::kSecond,
          rows_copied >> kOldest);
    }
    if constexpr (Tile::kHasColumns) {
      map_chunks<T, NormRelu, kPixels>(
          p.columns_prologue,
          channel,
          columns_at(stage),
          kPixelsAtOnce * Tile::kColumnsPitch,
          0,
          columns_copied >> kOldest);
    }
  }
};

// sums[i][n] += a·b over 16 pixels, both read transposed: `rows` and `columns` are the lane's.
template <class T, int RowTiles, int Tiles>
R21D_DEVICE void multiply_transposed(
    float (&sums)[RowTiles][Tiles][4], Address rows, Address columns) {
  ptx::Fragment4 a[RowTiles];
#pragma unroll
  for (int i = 0; i < RowTiles; ++i) {
    a[i] = ptx::ldmatrix_x4_transposed(R21D_SITE("weight: a"), rows + i * 2 * 16);
  }
#pragma unroll
  for (int n = 0; n < Tiles; n += 2) {
    const ptx::Fragment4 b = ptx::ldmatrix_x4_transposed(R21D_SITE("weight: b"), columns + n * 16);
#pragma unroll
    for (int i = 0; i < RowTiles; ++i) {
      ptx::mma_m16n8k16<T>(R21D_SITE("weight: product"), sums[i][n], a[i].x, b.x[0], b.x[1]);
      ptx::mma_m16n8k16<T>(R21D_SITE("weight: product"), sums[i][n + 1], a[i].x, b.x[2], b.x[3]);
    }
  }
}

// The thread's sums as 16-bit values of the gradient.
template <class T, class Tile>
R21D_DEVICE void write_weights(
    const WeightGradientParams& p,
    const float (&sums)[Tile::kWarpRows / 16][Tile::kWarpColumns / 8][4],
    int first_row,
    int first_column) {
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int n = 0; n < Tile::kWarpColumns / 8; ++n) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int column = first_column + n * 8 + lane % 4 * 2 + pair;
      const int tap = column / p.channels;
      const int channel = column - tap * p.channels;
      if (!ptx::below(R21D_SITE("weight: taps stored"), tap, p.kernel_rows * p.kernel_cols) ||
          !ptx::below(R21D_SITE("weight: inputs stored"), channel, p.inputs)) {
        continue;
      }
#pragma unroll
      for (int half = 0; half < Tile::kWarpRows / 8; ++half) {
        const int row = first_row + half * 8 + lane / 4;
        if (ptx::below(R21D_SITE("weight: rows stored"), row, p.row_count)) {
          const int64_t taps = int64_t{row} * (p.kernel_rows * p.kernel_cols) + tap;
          const float sum = sums[half / 2][n][half % 2 * 2 + pair];
          const uint16_t value = static_cast<uint16_t>(ptx::pack2<T>(sum, 0.0f));
          ptx::store_global(static_cast<uint16_t*>(p.out) + (taps * p.inputs + channel), value);
        }
      }
    }
  }
}

template <class T, class Tile>
R21D_KERNEL(Tile::kThreads, Tile::kBlocks)
weight_gradient_kernel(const WeightGradientParams p) {
  constexpr int kRowTiles = Tile::kWarpRows / 16;
  constexpr int kTiles = Tile::kWarpColumns / 8;
  constexpr int kStages = Tile::kStages;
  const Address ring = ptx::dynamic_shared();
  const int lane = static_cast<int>(lane_index());
  const int warp = static_cast<int>(warp_index());
  const int warp_row = warp % Tile::kRowWarps * Tile::kWarpRows;
  const int warp_column = warp / Tile::kRowWarps * Tile::kWarpColumns;
  const ptx::Index3 index = ptx::block_index();
  const int first_column = static_cast<int>(index.x) * Tile::kColumns;
  const int first_row = static_cast<int>(index.y) * Tile::kRows;
  const int part = static_cast<int>(index.z);

  const int first = p.split.part == kAddUp ? 0 : part * p.part_pixels;
  int end = p.pixels - first < p.part_pixels ? p.pixels : first + p.part_pixels;
  end = p.split.part == kAddUp ? 0 : end;
  const int steps = (end - first + Tile::kDepth - 1) / Tile::kDepth;
  WeightLoader<Tile> loader(p, first_row, first_column, first, end);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) {
      loader.load(ring + s * Tile::kStageBytes);
    } else {
      loader.load_nothing();
    }
    ptx::cp_async_commit(R21D_SITE("weight: first steps"));
  }

  float sums[kRowTiles][kTiles][4];
  clear(sums);
  // Lane 8·i + r reads pixel r of matrix i: of a, pixels 0-7 for both chunks of rows, then 8-15; of
  // b, pixels 0-15 for one chunk of columns, then for the next.
  const Address a_at = ring + (lane / 16 * 8 + lane % 8) * Tile::kRowsPitch +
                       (warp_row / kChunk + lane / 8 % 2) * 16;
  const Address b_at = ring + Tile::kColumnsAt + lane % 16 * Tile::kColumnsPitch +
                       (warp_column / kChunk + lane / 16) * 16;
  int current = 0;
  for (int step = 0; step < steps; ++step) {
    const Address here =
        ptx::stage(R21D_SITE("weight: stage to read"), current, kStages) * Tile::kStageBytes;
    ptx::cp_async_wait<kStages - 2>(R21D_SITE("weight: this step has arrived"));
    loader.template map<T>(ring + here);
    ptx::sync_threads(R21D_SITE("weight: for all, and the step before is read"));
    if (step + kStages - 1 < steps) {
      const int next = ptx::stage(
          R21D_SITE("weight: stage to fill"), current == 0 ? kStages - 1 : current - 1, kStages);
      loader.load(ring + next * Tile::kStageBytes);
    } else {
      loader.load_nothing();
    }
    ptx::cp_async_commit(R21D_SITE("weight: later steps"));
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      multiply_transposed<T>(
          sums, a_at + here + k * Tile::kRowsPitch, b_at + here + k * Tile::kColumnsPitch);
    }
    current = current + 1 == kStages ? 0 : current + 1;
  }

  if (p.split.part != kWhole) {
    const int64_t place = int64_t{index.y} * ptx::grid_size().x + index.x;
    const bool adds = p.split.part == kAddUp;
    const PartialSums<Tile::kThreads, kRowTiles, kTiles> partial(p.split, place, adds ? 0 : part);
    if (!adds) {
      partial.store(sums);
      return;
    }
    partial.add(sums, p.split.parts);
  }
  write_weights<T, Tile>(p, sums, first_row + warp_row, first_column + warp_column);
}

}  // namespace r21d::cuda
