// torch's side of the CUDA operators: the device of a call, its stream and memory, and operands.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>
#include <vector>

#include "cuda/program.h"
#include "torch_compat.h"

namespace r21d::cuda {

// Throws where `status` is an error, of `what`.
void check(cudaError_t status, const std::string& what);

// Of torch, for the device.
cudaStream_t current_stream(int device);

// The device's limits and rates, asked once.
const Gpu& known_gpu(int device);

class TorchDevice {
 public:
  explicit TorchDevice(const Tensor& like)
      : like_(like), stream_(current_stream(like.get_device_index())) {
  }

  // Freed when the call returns: torch gives the memory to later work of the same stream alone.
  void* allocate(int64_t bytes) {
    scratch_.push_back(empty_like_device({bytes}, ScalarType::Byte, like_));
    return scratch_.back().mutable_data_ptr();
  }

  // Zeros, in the stream's order.
  void clear(Tensor& tensor) {
    const int64_t bytes = tensor.numel() * tensor.element_size();
    if (bytes > 0) {
      check(cudaMemsetAsync(tensor.mutable_data_ptr(), 0, bytes, stream_), "clearing a tensor");
    }
  }

  void pack(const Grid& grid, const PackParams& params);
  void merge(const Grid& grid, const MergeParams& params);

  template <class Params>
  void launch(
      const char* name,
      void (*kernel)(Params),
      const Grid& grid,
      int threads,
      int shared_bytes,
      const Params& params) {
    constexpr int kWithoutAsking = 48 * 1024;
    if (shared_bytes > kWithoutAsking) {
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          std::string("the shared memory of ") + name);
    }
    const dim3 blocks(
        static_cast<unsigned>(grid.x),
        static_cast<unsigned>(grid.y),
        static_cast<unsigned>(grid.z));
    kernel<<<blocks, threads, shared_bytes, stream_>>>(params);
    check(cudaGetLastError(), std::string("the launch of ") + name);
  }

 private:
  const Tensor& like_;
  cudaStream_t stream_;
  std::vector<Tensor> scratch_;
};

inline void check_device(const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(
      other.is_cuda() && other.get_device_index() == x.get_device_index(),
      name,
      " must be on the device of x");
}

inline const float* vector_on(
    const Tensor& x, const OptionalTensor& v, int64_t length, const char* name) {
  if (v.has_value()) {
    check_device(x, *v, name);
  }
  return vector_data(v, length, name);
}

inline Strided strided(const Tensor& weight) {
  Strided out{weight.const_data_ptr(), {}};
  for (int64_t axis = 0; axis < 5; ++axis) {
    out.strides[axis] = weight.stride(axis);
  }
  return out;
}

// Calls `program(T)` with the tag of x's dtype.
template <class Program>
void with_dtype(const Tensor& x, const Program& program) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16:
      return program(ptx::Bfloat16{});
    case ScalarType::Half:
      return program(ptx::Float16{});
    default:
      STD_TORCH_CHECK(false, "x must be bfloat16 or float16 for the CUDA kernels");
  }
}

}  // namespace r21d::cuda
