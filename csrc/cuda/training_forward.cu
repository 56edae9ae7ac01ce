// A training step's forward pass on the GPU: u and y with their statistics, and a block's output.
#include "cuda/training_operands.h"
#include "cuda/training_program.h"

namespace r21d::cuda {
namespace {

// Mean and squared deviations, empty where nobody wants them.
struct Statistics {
  Tensor mean, m2;

  Statistics(const Tensor& like, int64_t channels, bool wanted)
      : mean(empty_like_device({wanted ? channels : 0}, ScalarType::Float, like)),
        m2(empty_like_device({wanted ? channels : 0}, ScalarType::Float, like)) {
  }

  float* mean_data() {
    return mean.numel() > 0 ? mean.mutable_data_ptr<float>() : nullptr;
  }
  float* m2_data() {
    return m2.numel() > 0 ? m2.mutable_data_ptr<float>() : nullptr;
  }
};

std::tuple<Tensor, Tensor, Tensor> train_spatial(
    const Tensor& x,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding,
    bool statistics,
    const OptionalTensor& in_scale,
    const OptionalTensor& in_shift,
    const std::string& force) {
  const SpatialGeometry s = spatial_geometry(x, weight, stride, padding);
  check_device(x, weight, "spatial_weight");
  check_together({in_scale, in_shift}, "in_scale and in_shift");
  check_plan(training_too_large(s, pointwise_after(s)));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  TorchDevice device(x);
  Tensor u = empty_ndhwc({s.n, mid_pitch(s), s.t, s.ho, s.wo}, x);
  Statistics found(x, s.m, statistics);
  const SpatialForwardOperands operands{
      x.const_data_ptr(),
      strided(weight),
      u.mutable_data_ptr(),
      found.mean_data(),
      found.m2_data(),
      {vector_on(x, in_scale, s.c, "in_scale"), vector_on(x, in_shift, s.c, "in_shift")}};
  if (s.n == 0) {
    device.clear(found.mean);
    device.clear(found.m2);
    return {u, found.mean, found.m2};
  }
  const Gpu& gpu = known_gpu(x.get_device_index());
  const Forced forced = parse_force(force).spatial_forward;
  const TrainingConv conv = spatial_conv_of(operands, s);
  const TrainingConvPlan plan = in_scale.has_value()
                                    ? plan_training_conv<kNormForward>(gpu, conv, forced)
                                    : plan_training_conv<kForward>(gpu, conv, forced);
  check_tile(plan.pixel_warps);
  with_dtype(x, [&](auto type) { run_spatial_forward<decltype(type)>(device, operands, s, plan); });
  return {u, found.mean, found.m2};
}

std::tuple<Tensor, Tensor, Tensor> train_temporal(
    const Tensor& u,
    const Tensor& scale,
    const Tensor& shift,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding,
    bool statistics,
    const std::string& force) {
  const TemporalGeometry t = temporal_geometry_of(u, weight, stride, padding);
  const SpatialGeometry s = pointwise_before(t);
  check_plan(training_too_large(s, t));
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  TorchDevice device(u);
  Tensor y = empty_ndhwc({t.n, t.o, t.to, t.ho, t.wo}, u);
  Statistics found(u, t.o, statistics);
  const TemporalForwardOperands operands{
      u.const_data_ptr(),
      {vector_on(u, scale, t.m, "scale"), vector_on(u, shift, t.m, "shift")},
      strided(weight),
      y.mutable_data_ptr(),
      found.mean_data(),
      found.m2_data()};
  if (t.n == 0) {
    device.clear(found.mean);
    device.clear(found.m2);
    return {y, found.mean, found.m2};
  }
  const TrainingConvPlan plan = plan_training_conv<kNormForward>(
      known_gpu(u.get_device_index()),
      temporal_forward_conv(s, t),
      parse_force(force).temporal_forward);
  check_tile(plan.pixel_warps);
  with_dtype(
      u, [&](auto type) { run_temporal_forward<decltype(type)>(device, operands, s, t, plan); });
  return {y, found.mean, found.m2};
}

Tensor join(const Tensor& y, const Tensor& scale, const Tensor& shift, const Tensor& residual) {
  check_rows(y, y, "y");
  check_rows(residual, y, "residual");
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  TorchDevice device(y);
  Tensor out = empty_ndhwc(sizes_of(y), y);
  const JoinOperands operands{
      y.const_data_ptr(),
      vector_on(y, scale, y.size(1), "scale"),
      vector_on(y, shift, y.size(1), "shift"),
      residual.const_data_ptr(),
      out.mutable_data_ptr()};
  if (y.numel() > 0) {
    with_dtype(y, [&](auto type) {
      run_join<decltype(type)>(device, operands, y.numel() / y.size(1), y.size(1));
    });
  }
  return out;
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CUDA, m) {
  m.impl("train_spatial", TORCH_BOX(&r21d::cuda::train_spatial));
  m.impl("train_temporal", TORCH_BOX(&r21d::cuda::train_temporal));
  m.impl("join", TORCH_BOX(&r21d::cuda::join));
}
