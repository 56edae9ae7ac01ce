// What the kernels share: fragments from rows in shared memory, products of a warp's tile, and the
// way of its sums to global memory.
#pragma once

#include "cuda/config.h"
#include "cuda/ptx.cuh"

namespace r21d::cuda {

using ptx::Address;
using ptx::Vec2;
using ptx::Vec4;

R21D_DEVICE uint32_t lane_index() {
  return ptx::thread_index() % 32;
}

R21D_DEVICE uint32_t warp_index() {
  return ptx::thread_index() / 32;
}

// ReLU that keeps NaN.
R21D_DEVICE float relu(float value) {
  return value < 0.0f ? 0.0f : value;
}

// Operand a of an m16n8k16: 16 rows whose first bytes are `row` of lanes 0 to 15; lanes 16 to 31
// give the same rows, 16 bytes further on (a_row_chunk).
R21D_DEVICE int a_row(uint32_t lane) {
  return static_cast<int>(lane % 16);
}

R21D_DEVICE int a_chunk(uint32_t lane) {
  return static_cast<int>(lane / 16);
}

// Operand b for 16 columns, as rows of the transposed matrix: registers 0 and 1 are the first
// eight columns', 2 and 3 the others'.
R21D_DEVICE int b_row(uint32_t lane) {
  return static_cast<int>(lane / 16 * 8 + lane % 8);
}

R21D_DEVICE int b_chunk(uint32_t lane) {
  return static_cast<int>(lane / 8 % 2);
}

// sums[i][n] += a[i]·b over 16 values: two tiles of 16 pixels, `Tiles` of eight columns. `columns`
// is the lane's row of b's first 16 columns, `pitch` the bytes between rows.
template <class T, int Tiles>
R21D_DEVICE void multiply(
    float (&sums)[2][Tiles][4], const ptx::Fragment4 (&a)[2], Address columns, int pitch) {
#pragma unroll
  for (int n = 0; n + 1 < Tiles; n += 2) {
    const ptx::Fragment4 b = ptx::ldmatrix_x4(R21D_SITE("b"), columns + n * 8 * pitch);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::mma_m16n8k16<T>(R21D_SITE("product"), sums[i][n], a[i].x, b.x[0], b.x[1]);
      ptx::mma_m16n8k16<T>(R21D_SITE("product"), sums[i][n + 1], a[i].x, b.x[2], b.x[3]);
    }
  }
  if constexpr (Tiles % 2 == 1) {
    // Lanes 16 to 31 repeat the addresses of the others: theirs would lie behind the last row.
    const Address last = columns + (Tiles - 1) * 8 * pitch;
    const Address mine = lane_index() < 16 ? last : last - 8 * pitch;
    const ptx::Fragment2 b = ptx::ldmatrix_x2(R21D_SITE("b, odd tile"), mine);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::mma_m16n8k16<T>(R21D_SITE("product"), sums[i][Tiles - 1], a[i].x, b.x[0], b.x[1]);
    }
  }
}

template <int RowTiles, int Tiles>
R21D_DEVICE void clear(float (&sums)[RowTiles][Tiles][4]) {
#pragma unroll
  for (int i = 0; i < RowTiles; ++i) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[i][n][e] = 0.0f;
      }
    }
  }
}

// value[column] or `missing`.
R21D_DEVICE float per_channel(const float* values, int column, int columns, float missing) {
  return values != nullptr && column < columns ? ptx::load_global(values + column) : missing;
}

// One value of an output row: with the residual, ReLU, and zero beyond `columns`.
template <class T>
R21D_DEVICE uint32_t
finish(const Epilogue& e, int column, float low, float high, uint32_t residual) {
  low += ptx::unpack_low<T>(residual);
  high += ptx::unpack_high<T>(residual);
  if (e.relu) {
    low = relu(low);
    high = relu(high);
  }
  const bool both = ptx::below(R21D_SITE("a pair's second channel exists"), column + 1, e.columns);
  const bool any = ptx::below(R21D_SITE("a pair's first channel exists"), column, e.columns);
  return ptx::pack2<T>(any ? low : 0.0f, both ? high : 0.0f);
}

// Eight values of an output row, at `offset` of the output, from float32 sums.
template <class T>
R21D_DEVICE Vec4
finish_chunk(const Epilogue& e, const Vec4 (&sums)[2], int column, int64_t offset) {
  const uint16_t* residual =
      e.residual == nullptr ? nullptr : static_cast<const uint16_t*>(e.residual) + offset;
  Vec4 added{};
  if (residual != nullptr && e.chunks) {
    added = ptx::load_global(reinterpret_cast<const Vec4*>(residual));
  } else if (residual != nullptr) {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      if (ptx::below(R21D_SITE("columns of the residual"), column + v, e.columns)) {
        added.x[v / 2] |= static_cast<uint32_t>(ptx::load_global(residual + v)) << (v % 2 * 16);
      }
    }
  }
  Vec4 values;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float low = ptx::as_float(sums[p / 2].x[p % 2 * 2]);
    const float high = ptx::as_float(sums[p / 2].x[p % 2 * 2 + 1]);
    values.x[p] = finish<T>(e, column + 2 * p, low, high, added.x[p]);
  }
  return values;
}

R21D_DEVICE void write_chunk(const Epilogue& e, const Vec4& values, int column, int64_t offset) {
  uint16_t* out = static_cast<uint16_t*>(e.out) + offset;
  if (e.chunks) {
    ptx::store_global(reinterpret_cast<Vec4*>(out), values);
    return;
  }
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    if (ptx::below(R21D_SITE("columns of single values"), column + v, e.columns)) {
      ptx::store_global(out + v, static_cast<uint16_t>(values.x[v / 2] >> (v % 2 * 16)));
    }
  }
}

// The warp's sums, 32 rows of Tiles·8 columns from `column` on, to `Epilogue::out`; `row(r)` is the
// row of the output that the warp's row r is, or -1. `staging` is the warp's own
// staging_bytes(Tiles * 8).
template <class T, int Tiles, class Row>
R21D_DEVICE void store_tile(
    const Epilogue& e, float (&sums)[2][Tiles][4], int column, Address staging, const Row& row) {
  constexpr int kPitch = (Tiles * 8 + 4) * 4;
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int mine = column + n * 8 + lane % 4 * 2 + pair;
      const float scale = per_channel(e.scale, mine, e.columns, 1.0f);
      const float shift = per_channel(e.shift, mine, e.columns, 0.0f);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[i][n][pair] = sums[i][n][pair] * scale + shift;
        sums[i][n][pair + 2] = sums[i][n][pair + 2] * scale + shift;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ptx::sync_warp(R21D_SITE("staging is free"));
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int r = lane / 4 + v / 2 * 8;
        const int c = n * 8 + lane % 4 * 2 + v % 2;
        ptx::store_shared(staging + r * kPitch + c * 4, sums[i][n][v]);
      }
    }
    ptx::sync_warp(R21D_SITE("staging is written"));
    for (int index = lane; index < 16 * Tiles; index += 32) {
      const int r = index / Tiles;
      const int chunk = index % Tiles;
      const int64_t place = row(i * 16 + r);
      const int first = column + chunk * kChunk;
      if (place < 0 || !ptx::below(R21D_SITE("columns of the output"), first, e.pitch)) {
        continue;
      }
      const Address from = staging + r * kPitch + chunk * 32;
      const Vec4 halves[2] = {ptx::load_shared<Vec4>(from), ptx::load_shared<Vec4>(from + 16)};
      const int64_t offset = place * e.pitch + first;
      write_chunk(e, finish_chunk<T>(e, halves, first, offset), first, offset);
    }
  }
}

}  // namespace r21d::cuda
