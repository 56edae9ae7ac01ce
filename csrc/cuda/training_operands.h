// What the training operators' tensors must be, on the GPU.
#pragma once

#include <string>

#include "cuda/force.h"
#include "cuda/torch_device.h"
#include "cuda/training_planner.h"
#include "operands.h"

namespace r21d::cuda {

// u or g: (N, mid_pitch(), T, H', W') in NDHWC, on the device and of the dtype of `like`.
inline void check_mid(
    const Tensor& mid, const SpatialGeometry& s, const Tensor& like, const char* name) {
  check_device(like, mid, name);
  check_ndhwc(mid, name);
  check_dtype(mid, like.scalar_type(), name);
  const int64_t sizes[] = {s.n, mid_pitch(s), s.t, s.ho, s.wo};
  for (int64_t axis = 0; axis < 5; ++axis) {
    STD_TORCH_CHECK(
        mid.size(axis) == sizes[axis],
        name,
        " has ",
        mid.size(axis),
        " values along axis ",
        axis,
        "; expected ",
        sizes[axis],
        ", of which channels are M rounded up to 16");
  }
}

// The temporal convolution of `mid`, whose channels are those of `weight` rounded up.
inline TemporalGeometry temporal_geometry_of(
    const Tensor& mid, const Tensor& weight, const Ints& stride, const Ints& padding) {
  check_ndhwc(mid, "u");
  check_device(mid, weight, "temporal_weight");
  check_dtype(weight, mid.scalar_type(), "temporal_weight");
  const TemporalGeometry t = temporal_geometry(
      mid.size(0), mid.size(2), mid.size(3), mid.size(4), weight, stride, padding);
  STD_TORCH_CHECK(t.t > 0 && t.ho > 0 && t.wo > 0, "u has an empty axis");
  check_mid(mid, pointwise_before(t), mid, "u");
  return t;
}

inline Ints sizes_of(const Tensor& tensor) {
  Ints sizes;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    sizes.push_back(tensor.size(axis));
  }
  return sizes;
}

// (N, C, T, H, W) in NDHWC, of the shape, device and dtype of `like`; few enough to index.
inline void check_rows(const Tensor& rows, const Tensor& like, const char* name) {
  check_device(like, rows, name);
  check_ndhwc(rows, name);
  check_dtype(rows, like.scalar_type(), name);
  STD_TORCH_CHECK(sizes_of(rows) == sizes_of(like), name, " has another shape than expected");
  STD_TORCH_CHECK(rows.size(1) > 0, name, " has no channels");
  STD_TORCH_CHECK(
      rows.size(1) <= kMostSummed,
      name,
      " has ",
      rows.size(1),
      " channels; at most ",
      kMostSummed,
      " are served");
}

inline void check_together(std::initializer_list<OptionalTensor> all, const char* names) {
  bool any = false;
  bool every = true;
  for (const OptionalTensor& one : all) {
    any = any || one.has_value();
    every = every && one.has_value();
  }
  STD_TORCH_CHECK(any == every, names, " must be given together");
}

inline void check_plan(const std::string& refusal) {
  STD_TORCH_CHECK(refusal.empty(), "the CUDA kernels cannot run this: ", refusal);
}

// Of a plan; 0: there is none.
inline void check_tile(int warps) {
  STD_TORCH_CHECK(
      warps > 0, "the CUDA kernels cannot run this: no tile is what was forced and fits the GPU");
}

}  // namespace r21d::cuda
