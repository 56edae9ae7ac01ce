// c = a·bᵀ on the tensor cores, tiles of 64 × 64 × 64 in swizzled shared memory: chunk i of row r,
// of 16 bytes, lies at chunk i ^ (r % 8), so that the eight rows of an ldmatrix meet eight banks.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kMatmulThreads = 128;
inline constexpr int kMatmulTile = 64;
inline constexpr int kMatmulTileBytes = 2 * kMatmulTile * kMatmulTile;

struct Matmul {
  const uint16_t* a;  // m × k
  const uint16_t* b;  // n × k; where kTransposed, k × n
  float* c;           // m × n
  int m, n, k;        // k and n multiples of 8
  Bug bug;
};

R21D_DEVICE ptx::Address swizzled(ptx::Address tile, int row, int chunk) {
  return tile + static_cast<ptx::Address>(128 * row + 16 * (chunk ^ (row % 8)));
}

// A tile of a rows × columns matrix, zeros outside it.
R21D_DEVICE void load_tile(
    ptx::Address tile, const uint16_t* x, int rows, int columns, int row, int column) {
  const int thread = static_cast<int>(ptx::thread_index());
  for (int i = thread; i < kMatmulTile * 8; i += kMatmulThreads) {
    const int r = i / 8;
    const int chunk = i % 8;
    const bool wanted = ptx::below(R21D_SITE("tile rows"), row + r, rows) &&
                        ptx::below(R21D_SITE("tile columns"), column / 8 + chunk, columns / 8);
    ptx::cp_async16(swizzled(tile, r, chunk), x + (row + r) * columns + column + 8 * chunk, wanted);
  }
}

template <class T, bool kTransposed>
R21D_KERNEL(kMatmulThreads, 1)
matmul_kernel(const Matmul p) {
  const ptx::Address a_tile = ptx::dynamic_shared();
  const ptx::Address b_tile = a_tile + kMatmulTileBytes;
  const int thread = static_cast<int>(ptx::thread_index());
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int row = static_cast<int>(ptx::block_index().y) * kMatmulTile;
  const int column = static_cast<int>(ptx::block_index().x) * kMatmulTile;
  float d[8][4] = {};
  for (int k = 0; k < p.k; k += kMatmulTile) {
    load_tile(a_tile, p.a, p.m, p.k, row, k);
    if (kTransposed) {
      load_tile(b_tile, p.b, p.k, p.n, k, column);
    } else {
      load_tile(b_tile, p.b, p.n, p.k, column, k);
    }
    ptx::cp_async_commit(R21D_SITE("tiles issued"));
    ptx::cp_async_wait<0>(R21D_SITE("tiles landed"));
    ptx::sync_threads(R21D_SITE("tiles visible"));
    for (int step = 0; step < kMatmulTile / 16; ++step) {
      // Matrices 0 and 1 are rows 0 to 7 and 8 to 15, 2 and 3 the same at the next 8 of k.
      const int a_row = 16 * warp + lane % 16;
      const int a_chunk = 2 * step + lane / 16;
      const ptx::Address a_at = p.bug == Bug::wrong_swizzle
                                    ? a_tile + static_cast<ptx::Address>(128 * a_row + 16 * a_chunk)
                                    : swizzled(a_tile, a_row, a_chunk);
      const ptx::Fragment4 a = ptx::ldmatrix_x4(R21D_SITE("a"), a_at);
      for (int pair = 0; pair < 4; ++pair) {
        // Columns 16 · pair to + 15: matrices 0 and 1 are the halves of k of the first eight.
        const int outer = 16 * pair + lane / 16 * 8;
        ptx::Fragment4 b;
        if (kTransposed) {
          const int b_row = 16 * step + lane % 16;
          b = ptx::ldmatrix_x4_transposed(
              R21D_SITE("b, transposed"), swizzled(b_tile, b_row, outer / 8));
        } else {
          const int b_chunk = 2 * step + lane / 8 % 2;
          b = ptx::ldmatrix_x4(R21D_SITE("b"), swizzled(b_tile, outer + lane % 8, b_chunk));
        }
        ptx::mma_m16n8k16<T>(R21D_SITE("mma"), d[2 * pair], a.x, b.x[0], b.x[1]);
        ptx::mma_m16n8k16<T>(R21D_SITE("mma"), d[2 * pair + 1], a.x, b.x[2], b.x[3]);
      }
    }
    ptx::sync_threads(R21D_SITE("tiles used"));
  }
  for (int tile = 0; tile < 8; ++tile) {
    for (int i = 0; i < 4; ++i) {
      const int r = row + 16 * warp + lane / 4 + i / 2 * 8;
      const int c = column + 8 * tile + 2 * (lane % 4) + i % 2;
      if (ptx::below(R21D_SITE("rows of c"), r, p.m) &&
          ptx::below(R21D_SITE("columns of c"), c, p.n)) {
        ptx::store_global(p.c + r * p.n + c, d[tile][i]);
      }
    }
  }
}

}  // namespace r21d::simt::textbook
