// The two convolutions of a tile: the pieces that the operators put together.
#pragma once

#include "cpu/blocks.h"
#include "cpu/isa.h"
#include "cpu/pack.h"
#include "cpu/planner.h"
#include "geometry.h"
#include "operands.h"
#include "torch_compat.h"

namespace r21d::cpu {

// A tile's place in the output: rows [y, y + height), columns [x, x + width).
struct TileRect {
  int64_t y, x, height, width;

  int64_t pixels() const {
    return height * width;
  }
};

TileRect tile_rect(const Tile& tile, int64_t ho, int64_t wo, int64_t index);

// The spatial convolution of one tile of one frame.
struct SpatialStage {
  const Isa& isa;
  Dtype dtype;
  SpatialGeometry g;
  Tile tile;
  Blocks blocks;
  SpatialWeights weights;

  Band band() const {
    return band_of(g, tile, isa.unit_channels(dtype));
  }

  // The zero-padded input that the tile sees, from frame `x` (H, W, C).
  void load_band(const void* x, const TileRect& rect, uint32_t* band) const;

  // c[pixel][lane] of one block of M, from the band.
  void multiply(const Block& block, const TileRect& rect, const uint32_t* band, float* c) const;
};

// The frames of v that a worker holds: `frames` slots of `pixels` pixels, oldest overwritten.
struct Ring {
  uint32_t* data;
  int64_t frames;
  int64_t pixels;
  int64_t pixel_units;

  uint32_t* slot(int64_t frame) const {
    return data + frame % frames * pixels * pixel_units;
  }
};

// The temporal convolution of one output frame of one tile, over one slice of M.
struct TemporalStage {
  const Isa& isa;
  Dtype dtype;
  TemporalGeometry g;
  Blocks blocks;
  TemporalWeights weights;

  // c[pixel][lane] (+)= one block of O, from the ring's `units` units of the slice that begins at
  // unit `first_unit`.
  void multiply(
      int64_t frame,
      const Block& block,
      const Ring& ring,
      int64_t first_unit,
      int64_t units,
      int64_t pixels,
      float* c,
      bool accumulate) const;
};

inline size_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

// Address of element `index` of a buffer of `dtype`.
inline const char* at(const void* data, Dtype dtype, int64_t index) {
  return static_cast<const char*>(data) + static_cast<size_t>(index) * element_bytes(dtype);
}
inline char* at(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + static_cast<size_t>(index) * element_bytes(dtype);
}

// kFloat32 or kBFloat16; anything else is refused with the argument's name.
Dtype dtype_of(const Tensor& x, const char* name);

Machine machine(const Isa& isa, Dtype dtype);

// 64-byte aligned buffers of one worker, cut from one allocation that torch accounts for.
class Scratch {
 public:
  Scratch(int64_t workers, int64_t bytes, const Tensor& like);
  char* worker(int64_t index) const {
    return base_ + index * bytes_;
  }

 private:
  int64_t bytes_;
  Tensor storage_;
  char* base_;
};

inline int64_t aligned_bytes(int64_t bytes) {
  return round_up(bytes, 64);
}

}  // namespace r21d::cpu
