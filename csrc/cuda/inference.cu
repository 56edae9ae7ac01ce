// conv2plus1d on the GPU: the planner's kernels on torch's current stream.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/force.h"
#include "cuda/program.h"
#include "operands.h"

// Of torch's CUDA library. Weak: the binary also loads beside a torch without one, where no tensor
// ever reaches this file.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream)
    __attribute__((weak));

namespace r21d::cuda {
namespace {

void check(cudaError_t status, const std::string& what) {
  STD_TORCH_CHECK(
      status == cudaSuccess, "CUDA error in ", what, ": ", std::string(cudaGetErrorString(status)));
}

cudaStream_t current_stream(int device) {
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr,
      "this torch has no CUDA support, or was loaded in a way that hides it");
  void* stream = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream(device, &stream) == 0, "torch has no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "the device's attributes");
  return value;
}

// The device's limits, and its rates by the data sheet's formulas, of which the shares are assumed
// that large matrix products and copies reach.
Gpu gpu_of(int device) {
  constexpr double kProduct = 0.8;
  constexpr double kCopy = 0.9;
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  STD_TORCH_CHECK(
      major >= 8, "compute capability ", major, ".", minor, " is below 8.0, which is needed");
  // Operations of a multiprocessor in a cycle, 16 bits, dense.
  const bool small = (major == 8 && minor > 0) || major == 12;
  const double per_cycle = small ? 1024.0 : major == 8 ? 2048.0 : major == 9 ? 4096.0 : 8192.0;
  Gpu gpu{};
  gpu.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  gpu.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  gpu.shared_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  gpu.registers = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
  gpu.flops =
      kProduct * per_cycle * gpu.multiprocessors * 1e3 * attribute(cudaDevAttrClockRate, device);
  gpu.bytes_per_second = kCopy * 2e3 * attribute(cudaDevAttrMemoryClockRate, device) *
                         attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
  return gpu;
}

// Asked once: some attributes take a round trip to the device.
const Gpu& known_gpu(int device) {
  static std::mutex mutex;
  static std::map<int, Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, gpu_of(device)).first->second;
}

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

void check_device(const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(
      other.is_cuda() && other.get_device_index() == x.get_device_index(),
      name,
      " must be on the device of x");
}

const float* vector_on(const Tensor& x, const OptionalTensor& v, int64_t length, const char* name) {
  if (v.has_value()) {
    check_device(x, *v, name);
  }
  return vector_data(v, length, name);
}

Strided strided(const Tensor& weight) {
  Strided out{weight.const_data_ptr(), {}};
  for (int64_t axis = 0; axis < 5; ++axis) {
    out.strides[axis] = weight.stride(axis);
  }
  return out;
}

Tensor conv2plus1d(
    const Tensor& x,
    const Tensor& spatial_weight,
    const Tensor& temporal_weight,
    const Tensor& scale,
    const Tensor& shift,
    const OptionalTensor& out_scale,
    const OptionalTensor& out_shift,
    const OptionalTensor& residual,
    bool relu,
    const Ints& stride,
    const Ints& padding,
    const std::string& kernels,
    const std::string& force) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
      "x must be bfloat16 or float16 for the CUDA kernels");
  STD_TORCH_CHECK(
      kernels.empty() || kernels == "fused" || kernels == "two",
      "kernels must be '', 'fused' or 'two', not '",
      kernels,
      "'");
  const SpatialGeometry s = spatial_geometry(x, spatial_weight, stride, padding);
  const TemporalGeometry t =
      temporal_geometry(s.n, s.t, s.ho, s.wo, temporal_weight, stride, padding);
  STD_TORCH_CHECK(t.m == s.m, "spatial_weight and temporal_weight differ in mid channels");
  check_dtype(temporal_weight, dtype, "temporal_weight");
  check_device(x, spatial_weight, "spatial_weight");
  check_device(x, temporal_weight, "temporal_weight");
  if (residual.has_value()) {
    check_device(x, *residual, "residual");
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = inference_output(x, t, residual);
  const Operands operands{
      x.const_data_ptr(),
      strided(spatial_weight),
      strided(temporal_weight),
      vector_on(x, scale, s.m, "scale"),
      vector_on(x, shift, s.m, "shift"),
      vector_on(x, out_scale, t.o, "out_scale"),
      vector_on(x, out_shift, t.o, "out_shift"),
      residual.has_value() ? residual->const_data_ptr() : nullptr,
      relu,
      y.mutable_data_ptr()};
  if (s.n == 0) {
    return y;
  }
  const Plan chosen = plan(known_gpu(x.get_device_index()), s, t, parse_force(force));
  STD_TORCH_CHECK(chosen.refusal.empty(), "the CUDA kernels cannot run this: ", chosen.refusal);
  STD_TORCH_CHECK(
      chosen.fused.refusal.empty() || force.find("fused.") == std::string::npos,
      "one kernel cannot run this: ",
      chosen.fused.refusal);
  const bool fused = kernels.empty()      ? chosen.prefers_fused
                     : kernels == "fused" ? chosen.fused.refusal.empty()
                                          : false;
  TorchDevice device(x);
  if (dtype == ScalarType::BFloat16) {
    run<ptx::Bfloat16>(device, operands, s, t, chosen, fused);
  } else {
    run<ptx::Float16>(device, operands, s, t, chosen, fused);
  }
  return y;
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CUDA, m) {
  m.impl("conv2plus1d", TORCH_BOX(&r21d::cuda::conv2plus1d));
}
