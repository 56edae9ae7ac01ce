// conv2plus1d on the GPU: the planner's kernels on torch's current stream.
#include <string>

#include "cuda/force.h"
#include "cuda/torch_device.h"
#include "operands.h"

namespace r21d::cuda {
namespace {

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
  with_dtype(x, [&](auto type) { run<decltype(type)>(device, operands, s, t, chosen, fused); });
  return y;
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CUDA, m) {
  m.impl("conv2plus1d", TORCH_BOX(&r21d::cuda::conv2plus1d));
}
