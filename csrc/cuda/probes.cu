// cuda_probe: what an instruction of ptx.cuh does on this GPU (tests/gpu/test_probes.py).
#include "cuda/probes.cuh"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "torch_compat.h"

namespace r21d::cuda {
namespace {

// Not for users: it runs on the device's default stream and waits for the result.
Tensor probe(const Tensor& input, const std::string& name) {
  STD_TORCH_CHECK(
      input.dim() == 1 && input.is_contiguous() && input.scalar_type() == ScalarType::Int,
      "input must be a contiguous vector of int32");
  ProbeRun run = probe_run(name, input.size(0));
  STD_TORCH_CHECK(run.probe != nullptr, "there is no probe '", name, "'");
  STD_TORCH_CHECK(run.fits, name, " reads ", run.probe->words_in, " words a round");
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const int64_t words = int64_t{run.params.rounds} * run.probe->words_out;
  Tensor output = empty_like_device({words}, ScalarType::Int, input);
  run.params.in = reinterpret_cast<const uint32_t*>(input.const_data_ptr<int32_t>());
  run.params.out = reinterpret_cast<uint32_t*>(output.mutable_data_ptr<int32_t>());

  cudaError_t status = cudaDeviceSynchronize();  // the input may come from another stream
  if (status == cudaSuccess) {
    status = cudaMemset(run.params.out, 0, words * sizeof(uint32_t));
  }
  if (status == cudaSuccess) {
    const dim3 grid(ProbeGrid::kX, ProbeGrid::kY, ProbeGrid::kZ);
    instructions_kernel<kMostProbeThreads><<<grid, run.probe->threads, kProbeShared>>>(run.params);
    status = cudaGetLastError();
  }
  if (status == cudaSuccess) {
    status = cudaDeviceSynchronize();
  }
  STD_TORCH_CHECK(
      status == cudaSuccess, "CUDA error in probe ", name, ": ", cudaGetErrorString(status));
  return output;
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CUDA, m) {
  m.impl("cuda_probe", TORCH_BOX(&r21d::cuda::probe));
}
