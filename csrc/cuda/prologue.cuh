// An elementwise map on what a convolution reads, applied in shared memory by the thread that
// copied it, after its copy has arrived and before others see it. What lies outside the image was
// copied as zeros and stays zero.
#pragma once

#include "cuda/tile.cuh"

namespace r21d::cuda {

using Vec8 = float[kChunk];

// values[channel] on, and zeros from the vectors' end on.
R21D_DEVICE void load_channels(
    Vec8& out, const float* values, int channel, int channels, bool chunks) {
  if (chunks && channel + kChunk <= channels) {
    const Vec4 halves[2] = {
        ptx::load_global(reinterpret_cast<const Vec4*>(values + channel)),
        ptx::load_global(reinterpret_cast<const Vec4*>(values + channel + 4))};
#pragma unroll
    for (int v = 0; v < kChunk; ++v) {
      out[v] = ptx::as_float(halves[v / 4].x[v % 4]);
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    const bool there = ptx::below(R21D_SITE("channels of a vector"), channel + v, channels);
    out[v] = there ? ptx::load_global(values + channel + v) : 0.0f;
  }
}

// The eight values of a chunk as float32, and back, rounded.
template <class T>
R21D_DEVICE void widen(Vec8& out, const Vec4& chunk) {
#pragma unroll
  for (int v = 0; v < kChunk; v += 2) {
    out[v] = ptx::unpack_low<T>(chunk.x[v / 2]);
    out[v + 1] = ptx::unpack_high<T>(chunk.x[v / 2]);
  }
}

template <class T>
R21D_DEVICE Vec4 narrow(const Vec8& values) {
  Vec4 chunk;
#pragma unroll
  for (int v = 0; v < kChunk; v += 2) {
    chunk.x[v / 2] = ptx::pack2<T>(values[v], values[v + 1]);
  }
  return chunk;
}

// Eight values of a row from `channel` on; whole chunks, or those below `channels`.
template <class T>
R21D_DEVICE void load_row(
    Vec8& out, const void* values, int64_t offset, int channel, int channels, bool chunks) {
  const uint16_t* from = static_cast<const uint16_t*>(values) + offset;
  if (chunks) {
    widen<T>(out, ptx::load_global(reinterpret_cast<const Vec4*>(from)));
    return;
  }
  Vec4 chunk{};
#pragma unroll
  for (int v = 0; v < kChunk; ++v) {
    if (ptx::below(R21D_SITE("channels of a row"), channel + v, channels)) {
      chunk.x[v / 2] |= static_cast<uint32_t>(ptx::load_global(from + v)) << (v % 2 * 16);
    }
  }
  widen<T>(out, chunk);
}

// Four channels of a vector, from `channel` on.
using Quad = float[4];

R21D_DEVICE void load_quad(Quad& out, const float* values, int channel, const Prologue& p) {
  if (p.chunks && channel + 4 <= p.channels) {
    const Vec4 loaded = ptx::load_global(reinterpret_cast<const Vec4*>(values + channel));
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      out[v] = ptx::as_float(loaded.x[v]);
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const bool there = ptx::below(R21D_SITE("channels of a prologue"), channel + v, p.channels);
    out[v] = there ? ptx::load_global(values + channel + v) : 0.0f;
  }
}

template <class T>
R21D_DEVICE void load_values(Quad& out, Address at) {
  const Vec2 loaded = ptx::load_shared<Vec2>(at);
#pragma unroll
  for (int v = 0; v < 4; v += 2) {
    out[v] = ptx::unpack_low<T>(loaded.x[v / 2]);
    out[v + 1] = ptx::unpack_high<T>(loaded.x[v / 2]);
  }
}

template <class T>
R21D_DEVICE void store_values(Address at, const Quad& values) {
  ptx::store_shared(
      at, Vec2{{ptx::pack2<T>(values[0], values[1]), ptx::pack2<T>(values[2], values[3])}});
}

// relu(x·factor + offset) for four channels.
struct NormRelu {
  Quad factor, offset;

  R21D_DEVICE NormRelu(const Prologue& p, int channel) {
    load_quad(factor, p.factor, channel, p);
    load_quad(offset, p.offset, channel, p);
  }

  template <class T>
  R21D_DEVICE void apply(Address at, Address) const {
    Quad x;
    load_values<T>(x, at);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      x[v] = relu(x[v] * factor[v] + offset[v]);
    }
    store_values<T>(at, x);
  }
};

// x·factor + second·second_factor + offset for four channels; without a second x·factor.
struct NormBackward {
  Quad factor, second_factor, offset;
  bool has_second;

  R21D_DEVICE NormBackward(const Prologue& p, int channel) {
    has_second = p.second != nullptr;
    load_quad(factor, p.factor, channel, p);
    if (has_second) {
      load_quad(second_factor, p.second_factor, channel, p);
      load_quad(offset, p.offset, channel, p);
    }
  }

  template <class T>
  R21D_DEVICE void apply(Address at, Address second_at) const {
    Quad x;
    load_values<T>(x, at);
    if (has_second) {
      Quad second;
      load_values<T>(second, second_at);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        x[v] = x[v] * factor[v] + (second[v] * second_factor[v] + offset[v]);
      }
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        x[v] = x[v] * factor[v];
      }
    }
    store_values<T>(at, x);
  }
};

// `Map`, NormRelu or NormBackward, on those of a thread's `Chunks` chunks of eight channels that
// `wanted` has a bit for, the first chunk's the highest. They lie `between` bytes apart, and their
// second operands `second` behind them.
template <class T, class Map, int Chunks>
R21D_DEVICE void map_chunks(
    const Prologue& p, int channel, Address at, int between, int second, uint32_t wanted) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Map map(p, channel + half * 4);
#pragma unroll
    for (int i = 0; i < Chunks; ++i) {
      if ((wanted >> (Chunks - 1 - i) & 1u) != 0) {
        const Address mine = at + i * between + half * 8;
        map.template apply<T>(mine, mine + second);
      }
    }
  }
}

}  // namespace r21d::cuda
