// The output of a training kernel: a warp's sums are finished, written, and summed per channel over
// the tile's rows, and the tile's sums go to memory, in a row of their own.
#pragma once

#include "cuda/prologue.cuh"

namespace r21d::cuda {

// A row's first byte in the staging of Tiles·8 columns.
template <int Tiles>
R21D_DEVICE Address staged(Address staging, int row, int column) {
  return staging + (row * (Tiles * 8 + 4) + column) * 4;
}

// The warp's 32 rows of sums, to its staging.
template <int Tiles>
R21D_DEVICE void stage_rows(const float (&sums)[2][Tiles][4], Address staging) {
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int row = i * 16 + lane / 4 + v / 2 * 8;
        const int column = n * 8 + lane % 4 * 2 + v % 2;
        ptx::store_shared(staged<Tiles>(staging, row, column), sums[i][n][v]);
      }
    }
  }
}

// Eight columns' sums in the making. Statistics are of the differences from `base`, a value of the
// column: a mean that is large beside the deviation costs them nothing.
struct ColumnSums {
  Vec8 base, first, second;

  R21D_DEVICE ColumnSums(const Sums& s, Address base_at) {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      base[v] = s.kind == kStatistics ? ptx::load_shared<float>(base_at + v * 4) : 0.0f;
      first[v] = 0.0f;
      second[v] = 0.0f;
    }
  }

  R21D_DEVICE void add_value(const Vec8& value) {
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      const float difference = value[v] - base[v];
      first[v] += difference;
      second[v] += difference * difference;
    }
  }
};

// BatchNorm's vectors for eight channels, as ReLU's backward needs them.
struct NormVectors {
  Vec8 scale, shift, mean, invstd;

  R21D_DEVICE NormVectors(const Sums& s, int channel, int channels) {
    const bool wanted = s.kind == kReluBackward;
    load_channels(scale, s.scale, channel, wanted ? channels : 0, s.chunks);
    load_channels(shift, s.shift, channel, wanted ? channels : 0, s.chunks);
    load_channels(mean, s.mean, channel, wanted ? channels : 0, s.chunks);
    load_channels(invstd, s.invstd, channel, wanted ? channels : 0, s.chunks);
  }
};

// Finishes the warp's rows, Tiles·8 columns from `column` on, from its staging, writes them, and
// leaves its columns' sums in `first` and `second` (a float32 a column). `row(r)` is the row of the
// output, or -1; those from `rows` on are all -1.
template <class T, int Tiles, class Row>
R21D_DEVICE void finish_rows(
    const Epilogue& e,
    const Sums& s,
    int column,
    int rows,
    Address staging,
    Address first,
    Address second,
    const Row& row) {
  // A lane keeps to a chunk of columns and takes every kGroups-th row.
  constexpr int kGroups = 32 / Tiles;
  const int lane = static_cast<int>(lane_index());
  const int group = lane / Tiles;
  const int chunk = lane % Tiles;
  const int mine = column + chunk * kChunk;
  const bool wanted =
      group < kGroups && ptx::below(R21D_SITE("sums: columns of the output"), mine, e.pitch);
  ColumnSums sums(s, staged<Tiles>(staging, 0, chunk * kChunk));
  const NormVectors norm(s, mine, wanted ? e.columns : 0);
  for (int r = group; r < 32 && wanted; r += kGroups) {
    const int64_t place = row(r);
    if (place < 0) {
      break;
    }
    const Address from = staged<Tiles>(staging, r, chunk * kChunk);
    Vec4 halves[2] = {ptx::load_shared<Vec4>(from), ptx::load_shared<Vec4>(from + 16)};
    const int64_t offset = place * e.pitch + mine;
    if (s.kind != kReluBackward) {
      const Vec4 stored = finish_chunk<T>(e, halves, mine, offset);
      write_chunk(e, stored, mine, offset);
      Vec8 values;
      widen<T>(values, stored);
      sums.add_value(values);
      continue;
    }
    Vec8 u;
    load_row<T>(u, s.u, offset, mine, e.columns, e.chunks);
    const Vec4 whole = finish_chunk<T>(e, halves, mine, offset);
    Vec8 g;
    widen<T>(g, whole);
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      // NaN passes, as it does through relu's own backward.
      g[v] = u[v] * norm.scale[v] + norm.shift[v] <= 0.0f ? 0.0f : g[v];
      sums.first[v] += g[v];
      sums.second[v] += g[v] * ((u[v] - norm.mean[v]) * norm.invstd[v]);
    }
    write_chunk(e, narrow<T>(g), mine, offset);
  }
  if (s.kind == kNoReduction) {
    return;
  }
  // The lanes' sums behind the first row, which holds the bases.
  const Address lanes = staged<Tiles>(staging, 16, 0);
  ptx::sync_warp(R21D_SITE("sums: the staging is read"));
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    ptx::store_shared(lanes + (lane * 2 * kChunk + v) * 4, sums.first[v]);
    ptx::store_shared(lanes + (lane * 2 * kChunk + kChunk + v) * 4, sums.second[v]);
  }
  ptx::sync_warp(R21D_SITE("sums: the lanes' are written"));
  for (int c = lane; c < Tiles * 8; c += 32) {
    float total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int q = 0; q < kGroups; ++q) {
      const Address from = lanes + ((q * Tiles + c / 8) * 2 * kChunk + c % 8) * 4;
      total[0] += ptx::load_shared<float>(from);
      total[1] += ptx::load_shared<float>(from + kChunk * 4);
    }
    if (s.kind == kStatistics && rows > 0) {
      const float difference = total[0] / static_cast<float>(rows);
      total[1] -= total[0] * difference;
      total[0] = ptx::load_shared<float>(staged<Tiles>(staging, 0, c)) + difference;
    }
    ptx::store_shared(first + c * 4, total[0]);
    ptx::store_shared(second + c * 4, total[1]);
  }
}

// Chan's merge of `groups` sums of one column: the g-th of `count(g)` values, `at(g, which)` its
// mean and squared deviations; all have the same number of values but the last ones, which may have
// none. With other sums than statistics, they are added.
struct Merged {
  float first, second;
};

template <class Count, class At>
R21D_DEVICE Merged merge_column(Reduction kind, int groups, const Count& count, const At& at) {
  Merged m{0.0f, 0.0f};
  if (kind != kStatistics) {
    for (int g = 0; g < groups; ++g) {
      m.first += at(g, 0);
      m.second += at(g, 1);
    }
    return m;
  }
  // Means as differences from the first one, which a large mean then does not drown.
  const float base = at(0, 0);
  float values = 0.0f;
  float differences = 0.0f;
  for (int g = 0; g < groups && count(g) > 0; ++g) {
    const float here = static_cast<float>(count(g));
    values += here;
    differences += here * (at(g, 0) - base);
  }
  const float difference = values > 0.0f ? differences / values : 0.0f;
  for (int g = 0; g < groups && count(g) > 0; ++g) {
    const float from_mean = at(g, 0) - base - difference;
    m.second += at(g, 1) + static_cast<float>(count(g)) * from_mean * from_mean;
  }
  m.first = base + difference;
  return m;
}

}  // namespace r21d::cuda
