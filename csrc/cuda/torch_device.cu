#include "cuda/torch_device.h"

#include <map>
#include <mutex>

#include "cuda/merge.cuh"
#include "cuda/pack.cuh"

// Of torch's CUDA library. Weak: the binary also loads beside a torch without one, where no tensor
// ever reaches this file.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream)
    __attribute__((weak));

namespace r21d::cuda {

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

namespace {

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

}  // namespace

// Asked once: some attributes take a round trip to the device.
const Gpu& known_gpu(int device) {
  static std::mutex mutex;
  static std::map<int, Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, gpu_of(device)).first->second;
}

void TorchDevice::pack(const Grid& grid, const PackParams& params) {
  launch("pack", pack_kernel, grid, kPackThreads, 0, params);
}

void TorchDevice::merge(const Grid& grid, const MergeParams& params) {
  launch("merge", merge_kernel, grid, kMergeThreads, 0, params);
}

}  // namespace r21d::cuda
