// Weights in the order in which the gemms read them. Packed at each call: a cache would have to
// notice every write to the weights, and packing costs well under a percent of conv2_x.
#pragma once

#include "cpu/blocks.h"
#include "cpu/isa.h"
#include "torch_compat.h"

namespace r21d::cpu {

// [block of M][dy][dx][unit of C][lane]
struct SpatialWeights {
  Tensor storage;
  const uint32_t* data;
  int64_t row_units;  // units of one dy: kw * units of C

  const uint32_t* block(const Block& block, int64_t kh) const {
    return data + block.first * kh * row_units;
  }
};

SpatialWeights pack_spatial(const Tensor& weight, const Isa& isa, Dtype dtype);

// [slice of M][block of O][tap][unit of the slice][lane]
struct TemporalWeights {
  Tensor storage;
  const uint32_t* data;
  int64_t taps;
  int64_t out_padded;

  // Where the panel of one block of O begins, for the slice of `units` from unit `first` on.
  int64_t offset(int64_t first, int64_t units, const Block& block) const {
    return first * taps * out_padded + block.first * taps * units;
  }
};

TemporalWeights pack_temporal(
    const Tensor& weight, const Isa& isa, Dtype dtype, int64_t slice_blocks);

}  // namespace r21d::cpu
