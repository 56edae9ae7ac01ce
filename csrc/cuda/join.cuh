// Where a residual block ends: out = relu(y·scale + shift + residual), forward and backward, over
// rows of channels. A thread keeps to eight channels and walks over rows.
#pragma once

#include "cuda/prologue.cuh"

namespace r21d::cuda {

// The thread's channels and the first of its rows; `columns` threads lie side by side.
struct JoinThread {
  int channel, lane, first_row, rows_at_once;

  R21D_DEVICE explicit JoinThread(const JoinParams& p) {
    const int thread = static_cast<int>(ptx::thread_index());
    lane = thread % p.chunk_lanes;
    channel = (static_cast<int>(ptx::block_index().y) * p.chunk_lanes + lane) * kChunk;
    rows_at_once = kJoinThreads / p.chunk_lanes;
    first_row = thread / p.chunk_lanes;
  }
};

template <class T>
R21D_DEVICE void store_row(
    void* values, const Vec8& row, int64_t offset, int channel, int channels, bool chunks) {
  uint16_t* to = static_cast<uint16_t*>(values) + offset;
  const Vec4 chunk = narrow<T>(row);
  if (chunks) {
    ptx::store_global(reinterpret_cast<Vec4*>(to), chunk);
    return;
  }
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    if (ptx::below(R21D_SITE("channels of a stored row"), channel + v, channels)) {
      ptx::store_global(to + v, static_cast<uint16_t>(chunk.x[v / 2] >> (v % 2 * 16)));
    }
  }
}

// out = relu(y·first + second + other); first and second are scale and shift, other the residual.
template <class T>
R21D_KERNEL(kJoinThreads, 1)
join_kernel(const JoinParams p) {
  const JoinThread t(p);
  Vec8 scale, shift;
  load_channels(scale, p.first, t.channel, p.channels, p.vector_chunks);
  load_channels(shift, p.second, t.channel, p.channels, p.vector_chunks);
  if (t.channel >= p.channels) {
    return;
  }
  const int64_t step = int64_t{ptx::grid_size().x} * t.rows_at_once;
  int64_t row = int64_t{ptx::block_index().x} * t.rows_at_once + t.first_row;
  for (; row < p.rows; row += step) {
    const int64_t offset = row * p.channels + t.channel;
    Vec8 y, other;
    load_row<T>(y, p.y, offset, t.channel, p.channels, p.chunks);
    load_row<T>(other, p.other, offset, t.channel, p.channels, p.chunks);
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      y[v] = relu(y[v] * scale[v] + shift[v] + other[v]);
    }
    store_row<T>(p.out, y, offset, t.channel, p.channels, p.chunks);
  }
}

// g = other where the block's output passed its ReLU, and the sums of g and g·(y - first)·second
// over the block's rows; first and second are mean and 1/deviation, other the gradient.
template <class T>
R21D_KERNEL(kJoinThreads, 1)
join_backward_kernel(const JoinParams p) {
  R21D_STATIC_SHARED(sums, kJoinThreads * 2 * kChunk * 4);
  const JoinThread t(p);
  Vec8 mean, invstd, sum, sum_normalized;
  load_channels(mean, p.first, t.channel, p.channels, p.vector_chunks);
  load_channels(invstd, p.second, t.channel, p.channels, p.vector_chunks);
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    sum[v] = 0.0f;
    sum_normalized[v] = 0.0f;
  }
  const int64_t first = int64_t{ptx::block_index().x} * p.block_rows;
  const int64_t end = first + p.block_rows < p.rows ? first + p.block_rows : p.rows;
  const bool there = t.channel < p.channels;
  for (int64_t row = first + t.first_row; row < end && there; row += t.rows_at_once) {
    const int64_t offset = row * p.channels + t.channel;
    Vec8 g, y, passed;
    load_row<T>(g, p.other, offset, t.channel, p.channels, p.chunks);
    load_row<T>(y, p.y, offset, t.channel, p.channels, p.chunks);
    load_row<T>(passed, p.passed, offset, t.channel, p.channels, p.chunks);
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      // NaN passes, as it does through relu's own backward.
      g[v] = passed[v] <= 0.0f ? 0.0f : g[v];
      sum[v] += g[v];
      sum_normalized[v] += g[v] * ((y[v] - mean[v]) * invstd[v]);
    }
    store_row<T>(p.out, g, offset, t.channel, p.channels, p.chunks);
  }
  // The rows' sums are added up in a tree, whose rounding errors do not grow with their number.
  const int thread = static_cast<int>(ptx::thread_index());
  const auto place_of = [&](int which, int v) {
    return sums + ((which * kChunk + v) * kJoinThreads + thread) * 4;
  };
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    ptx::store_shared(place_of(0, v), sum[v]);
    ptx::store_shared(place_of(1, v), sum_normalized[v]);
  }
  for (int half = t.rows_at_once / 2; half > 0; half /= 2) {
    ptx::sync_threads(R21D_SITE("join: the other half is summed"));
    if (t.first_row < half) {
      const int other = half * p.chunk_lanes * 4;
#pragma unroll
      for (int v = 0; v < kChunk; ++v) {
        sum[v] += ptx::load_shared<float>(place_of(0, v) + other);
        sum_normalized[v] += ptx::load_shared<float>(place_of(1, v) + other);
        ptx::store_shared(place_of(0, v), sum[v]);
        ptx::store_shared(place_of(1, v), sum_normalized[v]);
      }
    }
  }
  if (t.first_row > 0) {
    return;
  }
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    if (ptx::below(R21D_SITE("join: channels summed"), t.channel + v, p.channels)) {
      const int64_t place = int64_t{ptx::block_index().x} * p.channels + t.channel + v;
      ptx::store_global(p.sum + place, sum[v]);
      ptx::store_global(p.sum_normalized + place, sum_normalized[v]);
    }
  }
}

}  // namespace r21d::cuda
