// torch's stable ABI as the operators use it: checks with messages, tensors in NDHWC, workers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

namespace r21d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

inline Tensor empty_ndhwc(const Ints& sizes, const Tensor& like) {
  return torch::stable::empty(
      torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
      like.scalar_type(),
      std::nullopt,
      like.device(),
      std::nullopt,
      torch::headeronly::MemoryFormat::ChannelsLast3d);
}

inline Tensor empty_like_device(const Ints& sizes, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty(
      torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()),
      dtype,
      std::nullopt,
      like.device());
}

// Whether the elements lie in memory as (N, T, H, W, C) without gaps. Strides of axes of length
// one say nothing.
inline bool is_ndhwc(const Tensor& x) {
  const int64_t order[] = {1, 4, 3, 2, 0};
  int64_t expected = 1;
  for (const int64_t axis : order) {
    if (x.size(axis) == 0) {
      return true;
    }
    if (x.size(axis) != 1 && x.stride(axis) != expected) {
      return false;
    }
    expected *= x.size(axis);
  }
  return true;
}

inline void check_ndhwc(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 5, name, " must have 5 dimensions, got ", x.dim());
  STD_TORCH_CHECK(is_ndhwc(x), name, " must be NDHWC (torch.channels_last_3d)");
}

inline void check_dtype(const Tensor& x, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has a dtype that does not fit the others");
}

// A float32 vector of `length` on the CPU or device of the call.
inline const float* vector_data(const Tensor& vector, int64_t length, const char* name) {
  STD_TORCH_CHECK(
      vector.dim() == 1 && vector.size(0) == length && vector.is_contiguous() &&
          vector.scalar_type() == ScalarType::Float,
      name,
      " must be a contiguous float32 vector of length ",
      length);
  return vector.const_data_ptr<float>();
}

inline const float* vector_data(const OptionalTensor& vector, int64_t length, const char* name) {
  return vector.has_value() ? vector_data(*vector, length, name) : nullptr;
}

inline void check_triple(const Ints& values, int64_t least, const char* name) {
  STD_TORCH_CHECK(values.size() == 3, name, " must hold three values");
  for (const int64_t value : values) {
    STD_TORCH_CHECK(value >= least, name, " must be at least ", least);
  }
}

// Runs body(worker, item) for every item of [0, items) on torch's threads; a worker takes the
// next item when it is done with one. body must not throw.
template <class Body>
void for_each_item(int64_t items, int64_t workers, const Body& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item = next++; item < items; item = next++) {
        body(worker, item);
      }
    }
  });
}

}  // namespace r21d
