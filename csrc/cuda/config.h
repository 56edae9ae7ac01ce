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

// Two warps share a tile's columns; each has 32 of its pixels.
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
};

// Upper bounds of the registers of a thread, by what was compiled.
R21D_BOTH constexpr int conv_registers(int columns) {
  return columns >= 128 ? 128 : columns == 96 ? 120 : columns == 64 ? 96 : 80;
}

template <int PixelWarps, int Columns>
struct ConvTile {
  static constexpr int kPixelWarps = PixelWarps;
  static constexpr int kColumns = Columns;
  static constexpr int kPixels = kWarpPixels * PixelWarps;
  static constexpr int kWarps = PixelWarps * kColumnWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpColumns = Columns / kColumnWarps;
  static constexpr int kBlocks = 2;  // that fit a multiprocessor at once
  static constexpr int kRegisters = conv_registers(Columns);
  static constexpr int kStages = 4;
  static constexpr int kDepthChunks = 4;  // of a step of the sum: 32 values
  static constexpr int kPitch = odd_pitch(kDepthChunks) * 16;
  static constexpr int kStageBytes = (kPixels + Columns) * kPitch;
  static constexpr int kSharedBytes =
      larger(kStages * kStageBytes, kWarps* staging_bytes(kWarpColumns));
};

// (pixel warps, columns), as the macro's argument takes them.
#define R21D_CONV_TILES(tile) \
  tile(4, 144) tile(4, 128) tile(4, 96) tile(4, 64) tile(4, 48) tile(2, 64)

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
