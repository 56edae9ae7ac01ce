// The kernels' parameters, the sizes that they are compiled for, and the shared memory that they
// take. Plain data, host and device.
#pragma once

#include <cstdint>

namespace r21d::cuda {

#ifdef __CUDACC__
#define R21D_BOTH __host__ __device__
#else
#define R21D_BOTH
#endif

// Rows of 16-byte chunks in shared memory are an odd number of chunks apart, so that the eight rows
// of an ldmatrix lie in different banks.
R21D_BOTH constexpr int odd_pitch(int chunks) {
  return chunks | 1;
}

R21D_BOTH constexpr int larger(int a, int b) {
  return a > b ? a : b;
}

// Two warps share a tile's columns; each has 32 of its pixels. WeightTile has its own.
inline constexpr int kWarpPixels = 32;
inline constexpr int kColumnWarps = 2;
inline constexpr int kChunk = 8;  // 16-bit values of 16 bytes

// Bytes in which a warp turns 16 rows of `columns` float32 sums into rows of 16 bytes.
R21D_BOTH constexpr int staging_bytes(int columns) {
  return 16 * (columns + 4) * 4;
}

// What is done to a finished sum: relu(sum * scale + shift + residual).
struct Epilogue {
  const float* scale;    // null: 1
  const float* shift;    // null: 0
  const void* residual;  // null: 0; as the output
  void* out;             // rows of `pitch` 16-bit values
  int columns;           // values beyond it in a row are stored as zeros
  int pitch;
  bool relu;
  bool chunks;  // whole 16-byte chunks can be read and written
};

// An elementwise map on what a kernel reads, per channel: relu(x·factor + offset), or
// x·factor + second·second_factor + offset. It is applied to what lies inside the images: padding
// stays zero.
struct Prologue {
  const void* second;   // laid out as x; null: the sum's other two terms are left out
  const float* factor;  // null: x stays as it is
  const float* second_factor;
  const float* offset;
  int channels;  // of the vectors; x holds zeros in those beyond
  bool chunks;   // the vectors can be read 16 bytes at a time
};

// What is summed per channel of what a kernel writes.
enum Reduction : int {
  kNoReduction,
  kStatistics,    // mean and squared deviations from it, of the values as they are stored
  kReluBackward,  // of g, the sums where relu(u·scale + shift) passes; and Σg, Σg·(u - mean)·invstd
};

// How the channels' sums of a tile are made, and where they go: row `entry` of (entries, columns).
struct Sums {
  Reduction kind;
  const void* u;  // kReluBackward: rows of the output's pitch
  const float* scale;
  const float* shift;
  const float* mean;
  const float* invstd;
  bool chunks;    // the vectors can be read 16 bytes at a time
  float* first;   // mean, or Σg
  float* second;  // squared deviations, or Σg·(u - mean)·invstd
};

// A long sum over few tiles is cut into parts, which are added up in their order by the same
// kernel, run once more: the result does not depend on which part is done first.
enum Part : int {
  kWhole,
  kOnePart,  // sums of a part to `partial`
  kAddUp,    // the parts' sums from there
};

struct Split {
  float* partial;  // (blocks of kAddUp, parts, sums of a thread, threads)
  int parts;
  Part part;
};

// ---- conv.cuh: a convolution over images in NHWC. The spatial one has N·T images of H×W, the
// temporal one N images of T×(H·W) and a kernel of t×1.
struct ConvParams {
  const void* x;       // (images, rows, cols, channels)
  const void* weight;  // (columns, depth): taps × channels, zeros up to `depth`
  int pixels;          // images * out_rows * out_cols
  int rows, cols, channels;
  int out_rows, out_cols;
  int kernel_rows, kernel_cols, stride_rows, stride_cols, padding_rows, padding_cols;
  int depth;    // a multiple of 8
  bool narrow;  // channels < 8: x is read value by value
  Epilogue epilogue;
  // Of training alone:
  Prologue prologue;
  Sums sums;
  Split split;
};

// What a convolution's kernel is compiled for. The last two are transposed: x is the gradient at a
// convolution's output, strides and padding are that convolution's, and the taps of `weight` are in
// reverse order; the output's pixels of each phase (row and column modulo the strides) see the same
// taps and are a grid of their own.
enum ConvWork : int {
  kInfer,         // the epilogue
  kForward,       // Sums
  kNormForward,   // relu(x·factor + offset); Sums
  kGradient,      // Sums
  kNormGradient,  // x·factor + second·second_factor + offset; Sums
};

// Upper bounds of the registers of a thread, by what was compiled.
R21D_BOTH constexpr int conv_registers(int columns, int work) {
  if (work != kInfer) {
    return 128;
  }
  return columns >= 128 ? 128 : columns == 96 ? 120 : columns == 64 ? 96 : 80;
}

template <int PixelWarps, int Columns, int Work = kInfer>
struct ConvTile {
  static constexpr int kWork = Work;
  static constexpr bool kTrains = Work != kInfer;
  static constexpr bool kTransposed = Work == kGradient || Work == kNormGradient;
  static constexpr bool kHasPrologue = Work == kNormForward || Work == kNormGradient;
  static constexpr bool kHasSecond = Work == kNormGradient;
  static constexpr int kPixelWarps = PixelWarps;
  static constexpr int kColumns = Columns;
  static constexpr int kPixels = kWarpPixels * PixelWarps;
  static constexpr int kWarps = PixelWarps * kColumnWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpColumns = Columns / kColumnWarps;
  static constexpr int kBlocks = 2;  // that fit a multiprocessor at once
  static constexpr int kRegisters = conv_registers(Columns, Work);
  static constexpr int kStages = kHasSecond ? 3 : 4;
  static constexpr int kDepthChunks = 4;  // of a step of the sum: 32 values
  static constexpr int kPitch = odd_pitch(kDepthChunks) * 16;
  // x, the weight, and with kHasSecond the prologue's second operand.
  static constexpr int kSecond = (kPixels + Columns) * kPitch;
  static constexpr int kStageBytes = kSecond + (kHasSecond ? kPixels * kPitch : 0);
  // Training turns all of a warp's 32 rows at once, and sums over the warps behind them.
  static constexpr int kStaging = (kTrains ? 2 : 1) * staging_bytes(kWarpColumns);
  static constexpr int kSums = kTrains ? kPixelWarps * Columns * 2 * 4 : 0;
  static constexpr int kSharedBytes = larger(kStages * kStageBytes, kWarps* kStaging + kSums);
};

// (pixel warps, columns), as the macro's argument takes them.
#define R21D_CONV_TILES(tile) \
  tile(4, 144) tile(4, 128) tile(4, 96) tile(4, 64) tile(4, 48) tile(2, 64)
// Those of training, for each ConvWork but kInfer.
#define R21D_TRAINING_TILES(tile) tile(4, 144) tile(4, 128) tile(4, 64) tile(2, 64)

// ---- weight_gradient.cuh: the gradient of a convolution's weight, a matrix of the output's
// channels × (taps · the input's channels), summed over the output's pixels.
struct WeightGradientParams {
  const void* rows;  // (pixels, rows_pitch): the gradient at the convolution's output
  Prologue rows_prologue;
  int row_count, rows_pitch;
  const void* columns;  // (images, rows, cols, channels): the convolution's input
  Prologue columns_prologue;
  int pixels;  // of the output, of all images
  int image_rows, image_cols, channels;
  int out_rows, out_cols;
  int kernel_rows, kernel_cols, stride_rows, stride_cols, padding_rows, padding_cols;
  int column_count;  // taps × channels
  bool narrow;       // channels < 8: the input is read value by value
  int part_pixels;   // of a part, a multiple of a step
  Split split;
  void* out;   // (row_count, taps, inputs), 16-bit
  int inputs;  // at most `channels`, the others being padding
};

// What is applied to the two operands, x·factor + second·second_factor + offset to the rows' and
// relu(x·factor + offset) to the columns'.
enum WeightWork : int {
  kNormColumns,
  kNormRows,
  kNormBoth,
};

// Warps are 32 rows high, two beside each other; 144×192 is 3×4 of 48×48, of which the spatial
// weights of blocks that keep their channels are whole tiles: M = 144·2^i rows, 9·C = 576·2^i
// columns.
template <int RowWarps, int Columns, int Work>
struct WeightTile {
  static constexpr bool kHasRows = Work != kNormColumns;
  static constexpr bool kHasColumns = Work != kNormRows;
  static constexpr bool kTwelveWarps = RowWarps == 3;
  static constexpr int kRowWarps = RowWarps;
  static constexpr int kColumnWarps = kTwelveWarps ? 4 : 2;
  static constexpr int kWarpRows = kTwelveWarps ? 48 : 32;
  static constexpr int kRows = kWarpRows * RowWarps;
  static constexpr int kColumns = Columns;
  static constexpr int kWarps = RowWarps * kColumnWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpColumns = Columns / kColumnWarps;
  static constexpr int kBlocks = kTwelveWarps ? 1 : 2;
  static constexpr int kRegisters = kTwelveWarps ? 168 : 128;
  static constexpr int kStages = 3;
  static constexpr int kDepth = 32;  // pixels of a step
  static constexpr int kRowsPitch = odd_pitch(kRows / kChunk) * 16;
  static constexpr int kColumnsPitch = odd_pitch(Columns / kChunk) * 16;
  // A stage: the rows' operand, the columns', and the rows' second one.
  static constexpr int kColumnsAt = kDepth * kRowsPitch;
  static constexpr int kSecond = kColumnsAt + kDepth * kColumnsPitch;
  static constexpr int kStageBytes = kSecond + (kHasRows ? kDepth * kRowsPitch : 0);
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

// (row warps, columns), for each WeightWork.
#define R21D_WEIGHT_TILES(tile) tile(3, 192) tile(4, 128) tile(2, 64)

// ---- merge.cuh: the channels' sums of many tiles to those of fewer.
struct MergeParams {
  const float* first;  // (entries, columns), as Sums has them
  const float* second;
  float* merged_first;  // (ceil(entries / kMergeEntries), columns)
  float* merged_second;
  int entries, columns;
  int64_t values;      // of each entry
  int64_t all_values;  // the last entry may have fewer
  Reduction kind;
};

// ---- join.cuh: where a residual block ends, over `rows` rows of channels.
struct JoinParams {
  const void* y;        // what the block's last BatchNorm is of
  const void* other;    // the shortcut; backward: the gradient at the block's output
  const void* passed;   // backward: the block's output
  void* out;            // the block's output; backward: the gradient before ReLU
  const float* first;   // per channel: scale; backward: mean
  const float* second;  // shift; backward: 1/deviation
  float* sum;           // backward: (blocks, channels)
  float* sum_normalized;
  int64_t rows;
  int channels;
  int chunk_lanes;     // threads side by side, a power of two
  int64_t block_rows;  // backward
  bool chunks;         // whole 16-byte chunks can be read and written
  bool vector_chunks;
};

inline constexpr int kJoinThreads = 256;

inline constexpr int kMergeEntries = 128;
inline constexpr int kMergeColumns = 32;
inline constexpr int kMergeThreads = 256;

// ---- fused.cuh: the whole operator.
struct FusedParams {
  const void* x;  // (clips, frames, rows, cols, channels)
  const void*
      spatial_weight;  // (mid, depth): taps × band_channels; narrow: taps × channels, padded
  const void* temporal_weight;  // (columns, kernel_frames, mid_pitch)
  const float* scale;           // (mid)
  const float* shift;
  int frames, rows, cols, channels;
  int mid, mid_pitch;
  int out_frames, out_rows, out_cols;
  int kernel_frames, kernel_rows, kernel_cols;
  int stride_frames, stride_rows, stride_cols;
  int padding_frames, padding_rows, padding_cols;
  int depth;          // of the first product: a multiple of 16
  int band_channels;  // channels rounded up to 16; narrow: depth
  int band_cols;      // columns of the zero-padded frame that a row of output sees
  int band_bytes;     // of one band
  int bands;          // 2: the next frame's band is loaded while this one's is multiplied
  int raw_bytes;      // narrow: the band as it is, from which rows of `depth` values are made
  int tiles;          // of pixels, of one clip
  int chunk;          // output frames of a block
  bool narrow;        // channels < 8: x is read value by value
  Epilogue epilogue;
};

// At most so many a thread (tests/ops/test_cuda_binary.py).
R21D_BOTH constexpr int fused_registers(int pixel_warps, int mids, int live) {
  if (live == 3) {
    return 255;
  }
  if (mids == 144) {
    return live == 2 ? 216 : 192;
  }
  return live == 1 ? 128 : pixel_warps == 2 ? 168 : 176;
}

template <int PixelWarps, int Mids, int Live>
struct FusedTile {
  static constexpr int kPixelWarps = PixelWarps;
  static constexpr int kMids = Mids;   // channels of M in a slice
  static constexpr int kLive = Live;   // output frames that see one frame
  static constexpr int kColumns = 64;  // of O
  static constexpr int kPixels = kWarpPixels * PixelWarps;
  static constexpr int kWarps = PixelWarps * kColumnWarps;
  static constexpr int kThreads = 32 * kWarps;
  // That fit a multiprocessor at once, as far as registers go.
  static constexpr int kBlocks = PixelWarps == 4 ? 1 : Mids == 48 && Live < 3 ? 3 : 2;
  static constexpr int kRegisters = fused_registers(PixelWarps, Mids, Live);
  static constexpr int kStages = 3;
  // A unit of the first product: kDepthChunks of its sum for a slice of M. Of the second one: a
  // third of the slice for all taps. Both go through the same ring of stages.
  static constexpr int kDepthChunks = 8;
  static constexpr int kDepthPitch = odd_pitch(kDepthChunks) * 16;
  static constexpr int kSliceUnits = 3;
  static constexpr int kSliceChunks = Mids / kSliceUnits / kChunk;
  static constexpr int kSlicePitch = odd_pitch(kSliceChunks) * 16;
  static constexpr int kStageBytes = larger(Mids * kDepthPitch, Live * kColumns * kSlicePitch);
  static constexpr int kMidPitch = odd_pitch(Mids / kChunk) * 16;
  // v; afterwards the staging of the epilogue.
  static constexpr int kMidBytes =
      larger(kPixels * kMidPitch, kWarps* staging_bytes(kColumns / kColumnWarps));
  // Ring and v; the bands follow.
  static constexpr int kFixedBytes = kStages * kStageBytes + kMidBytes;
};

// (pixel warps, mids, live)
#define R21D_FUSED_TILES(tile)                                                                 \
  tile(4, 144, 3) tile(4, 144, 2) tile(4, 144, 1) tile(4, 48, 3) tile(4, 48, 2) tile(4, 48, 1) \
      tile(2, 144, 3) tile(2, 144, 2) tile(2, 144, 1) tile(2, 48, 3) tile(2, 48, 2) tile(2, 48, 1)

// ---- pack.cuh: row i of `out` holds in[i, j, k] at j * padded + k, and zeros elsewhere. The
// middle axis is two of the input's: a kernel's rows and columns.
struct PackParams {
  const void* in;
  void* out;
  int64_t stride_outer, stride_row, stride_col, stride_inner;  // of `in`, in values
  int outer, rows, cols, inner;
  int padded;  // values from one j to the next, at least `inner`
  int length;  // values of a row of `out`, at least rows * cols * padded
};

inline constexpr int kPackThreads = 256;

}  // namespace r21d::cuda
