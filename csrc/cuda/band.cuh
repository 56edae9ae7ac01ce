// The input of the fused kernel's first product: a band of the zero-padded frame in shared memory.
//
// Wide: (rows, band_cols) pixels of band_channels values each, by cp.async. The rows that a tap
// sees are the band's rows moved by one offset for all pixels. Narrow: the band as it lies in
// memory, and from it one row of `depth` values a pixel, tap after tap, so that few channels leave
// no gaps.
#pragma once

#include "cuda/tile.cuh"

namespace r21d::cuda {

// The pixels of a block: consecutive ones of one frame of output. Made anew where it is needed:
// kept over the products, it would take their registers.
struct PixelRange {
  int clip;
  int first;     // pixel of the output frame
  int count;     // of the frame, not of the range
  int row, col;  // of `first`
  int rows;      // of the output that the range lies in

  R21D_DEVICE PixelRange(const FusedParams& p, int pixels) {
    const int block = static_cast<int>(ptx::block_index().x);
    clip = block / p.tiles;
    count = p.out_rows * p.out_cols;
    first = block % p.tiles * pixels;
    row = first / p.out_cols;
    col = first % p.out_cols;
    const int last = (first + pixels < count ? first + pixels : count) - 1;
    rows = last / p.out_cols - row + 1;
  }
};

// Rows of the padded frame that the range sees.
R21D_DEVICE int band_rows(const FusedParams& p, const PixelRange& range) {
  return (range.rows - 1) * p.stride_rows + p.kernel_rows;
}

R21D_DEVICE int band_pitch(const FusedParams& p) {
  return odd_pitch(p.band_channels / kChunk) * 16;
}

R21D_DEVICE bool row_exists(const FusedParams& p, int row) {
  return ptx::below(R21D_SITE("band: first row of the frame"), -1, row) &&
         ptx::below(R21D_SITE("band: last row of the frame"), row, p.rows);
}

// Row 0 of frame `frame`.
R21D_DEVICE const uint16_t* frame_start(const FusedParams& p, int clip, int frame) {
  const int64_t pixel = (int64_t{clip} * p.frames + frame) * p.rows * p.cols;
  return static_cast<const uint16_t*>(p.x) + pixel * p.channels;
}

// Starts the copies of frame `frame`'s band.
template <class Tile>
R21D_DEVICE void load_band(const FusedParams& p, int frame, Address band) {
  const PixelRange range(p, Tile::kPixels);
  const int chunks = p.band_channels / kChunk;
  const int pitch = band_pitch(p);
  const int rows = band_rows(p, range);
  const int first_row = range.row * p.stride_rows - p.padding_rows;
  const uint16_t* x = frame_start(p, range.clip, frame);
  const int thread = static_cast<int>(ptx::thread_index());
  int chunk = thread % chunks;
  int col = thread / chunks % p.band_cols;
  int row = thread / chunks / p.band_cols;
  while (ptx::below(R21D_SITE("band: rows"), row, rows)) {
    const int y = first_row + row;
    const int left = col - p.padding_cols;
    const bool here = row_exists(p, y) &&
                      ptx::below(R21D_SITE("band: first column of the frame"), -1, left) &&
                      ptx::below(R21D_SITE("band: last column of the frame"), left, p.cols) &&
                      ptx::below(R21D_SITE("band: channels"), chunk, p.channels / kChunk);
    const int64_t offset = int64_t{y * p.cols + left} * p.channels + chunk * kChunk;
    ptx::cp_async16(band + (row * p.band_cols + col) * pitch + chunk * 16, x + offset, here);
    chunk += Tile::kThreads % chunks;
    col += Tile::kThreads / chunks;
    if (chunk >= chunks) {
      chunk -= chunks;
      ++col;
    }
    while (col >= p.band_cols) {
      col -= p.band_cols;
      ++row;
    }
  }
}

// Narrow: the band of frame `frame`, values of a row without gaps, to `raw`.
template <class Tile>
R21D_DEVICE void load_raw(const FusedParams& p, int frame, Address raw) {
  const PixelRange range(p, Tile::kPixels);
  const int length = p.band_cols * p.channels;
  const int before = p.padding_cols * p.channels;
  const int rows = band_rows(p, range);
  const int first_row = range.row * p.stride_rows - p.padding_rows;
  const uint16_t* x = frame_start(p, range.clip, frame);
  // Several values at a time, so that their ways from memory overlap.
  constexpr int kAtOnce = 8;
  int at = static_cast<int>(ptx::thread_index());
  int row = at / length;
  at %= length;
  bool more = true;
  while (more) {
    uint16_t value[kAtOnce];
    int place[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int y = first_row + row;
      const int left = at - before;
      more = ptx::below(R21D_SITE("raw: rows"), row, rows);
      place[i] = more ? row * length + at : -1;
      value[i] = 0;
      if (more && row_exists(p, y) &&
          ptx::below(R21D_SITE("raw: first column of the frame"), -1, left) &&
          ptx::below(R21D_SITE("raw: last column of the frame"), left, p.cols * p.channels)) {
        value[i] = ptx::load_global(x + (int64_t{y} * p.cols * p.channels + left));
      }
      at += Tile::kThreads;
      while (at >= length) {
        at -= length;
        ++row;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (place[i] >= 0) {
        ptx::store_shared(raw + place[i] * 2, value[i]);
      }
    }
  }
}

// Narrow: a row of `depth` values for each pixel of the range, from `raw` to `band`. A lane makes
// the same eight values of every pixel that its warp takes.
template <class Tile>
R21D_DEVICE void unfold(const FusedParams& p, Address raw, Address band) {
  const PixelRange range(p, Tile::kPixels);
  const int run = p.kernel_cols * p.channels;  // contiguous values of a row of the kernel
  const int length = p.band_cols * p.channels;
  const int values = p.kernel_rows * run;
  const int pitch = band_pitch(p);
  const int warp = static_cast<int>(warp_index());
  for (int chunk = static_cast<int>(lane_index()); chunk * kChunk < p.depth; chunk += 32) {
    int offset[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const int k = chunk * kChunk + v;
      const bool exists = ptx::below(R21D_SITE("unfold: values of a pixel"), k, values);
      offset[v] = exists ? (k / run * length + k % run) * 2 : -1;
    }
    int row = (range.col + warp) / p.out_cols;
    int col = (range.col + warp) % p.out_cols;
    for (int pixel = warp; pixel < Tile::kPixels; pixel += Tile::kWarps) {
      const Address from =
          raw + (row * p.stride_rows * length + col * p.stride_cols * p.channels) * 2;
      const bool exists = ptx::below(R21D_SITE("unfold: pixels"), range.first + pixel, range.count);
      Vec4 made{};
#pragma unroll
      for (int v = 0; v < kChunk; ++v) {
        if (exists && offset[v] >= 0) {
          const uint32_t value = ptx::load_shared<uint16_t>(from + offset[v]);
          made.x[v / 2] |= value << (v % 2 * 16);
        }
      }
      ptx::store_shared(band + pixel * pitch + chunk * 16, made);
      col += Tile::kWarps;
      while (col >= p.out_cols) {
        col -= p.out_cols;
        ++row;
      }
    }
  }
}

}  // namespace r21d::cuda
