// The operator's own kernels and host program (cuda/program.h) in the simulator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "cuda/program.h"
#include "simt/bindings.h"
#include "simt/host_device.h"

namespace r21d::simt {
namespace {

py::dict describe(const cuda::ConvPlan& plan) {
  py::dict out;
  out["pixel_warps"] = plan.pixel_warps;
  out["columns"] = plan.columns;
  out["units"] = ceil_div(plan.depth, 32);
  out["stages"] = plan.stages;
  out["blocks"] = int64_t{plan.grid_x} * plan.grid_y;
  return out;
}

py::dict describe(const cuda::FusedPlan& plan) {
  py::dict out;
  out["pixel_warps"] = plan.pixel_warps;
  out["mids"] = plan.mids;
  out["live"] = plan.live;
  out["slices"] = plan.slices;
  out["bands"] = plan.bands;
  out["chunk"] = plan.chunk;
  out["units"] = plan.slices * (ceil_div(plan.depth, 64) + 3);
  out["stages"] = plan.stages;
  out["blocks"] = int64_t{plan.grid_x} * plan.grid_y * plan.grid_z;
  return out;
}

// y and what ran; x and residual NDHWC, so (N, T, H, W, channels); weights as torch has them, of
// any strides; stride and padding (t, h, w).
py::tuple conv2plus1d(
    const Rows& x,
    const Halves& spatial_weight,
    const Halves& temporal_weight,
    const Floats& scale,
    const Floats& shift,
    const std::optional<Floats>& out_scale,
    const std::optional<Floats>& out_shift,
    const std::optional<Rows>& residual,
    bool relu,
    const Ints& stride,
    const Ints& padding,
    const std::string& dtype,
    const std::string& kernels,
    int shared_block,
    const py::dict& force) {
  const Ints sizes{
      x.shape(0),
      x.shape(4),
      x.shape(1),
      x.shape(2),
      x.shape(3),
      spatial_weight.shape(0),
      temporal_weight.shape(0)};
  const Ints kernel{temporal_weight.shape(2), spatial_weight.shape(3), spatial_weight.shape(4)};
  const auto [s, t] = make_geometry(sizes, kernel, stride, padding);

  const cuda::Gpu gpu = simulated_gpu(shared_block);
  cuda::ForcedPlan wanted;
  wanted.spatial = forced(force, "spatial");
  wanted.temporal = forced(force, "temporal");
  wanted.fused = forced(force, "fused");
  const cuda::Plan plan = cuda::plan(gpu, s, t, wanted);
  const bool fused = kernels == "fused";
  if (!plan.refusal.empty() || (fused && !plan.fused.refusal.empty())) {
    throw std::invalid_argument(plan.refusal.empty() ? plan.fused.refusal : plan.refusal);
  }

  Rows y({s.n, t.to, t.ho, t.wo, t.o});
  std::fill_n(y.mutable_data(), y.size(), uint16_t{0xffff});
  py::dict ran;
  {
    HostDevice device(static_cast<size_t>(shared_block));
    const cuda::Operands operands{
        device.input("x", x),
        strided(device, "spatial_weight", spatial_weight),
        strided(device, "temporal_weight", temporal_weight),
        device.vector("scale", scale),
        device.vector("shift", shift),
        device.vector("out_scale", out_scale),
        device.vector("out_shift", out_shift),
        residual ? device.input("residual", *residual) : nullptr,
        relu,
        device.output("y", y)};
    if (dtype == "bfloat16") {
      cuda::run<ptx::Bfloat16>(device, operands, s, t, plan, fused);
    } else if (dtype == "float16") {
      cuda::run<ptx::Float16>(device, operands, s, t, plan, fused);
    } else {
      throw std::invalid_argument("dtype must be bfloat16 or float16");
    }
    ran["launched"] = device.launched;
    ran["uninitialised_reads"] = device.uninitialised_reads;
  }
  if (fused) {
    ran["fused"] = describe(plan.fused);
  } else {
    ran["spatial"] = describe(plan.spatial);
    ran["temporal"] = describe(plan.temporal);
  }
  return py::make_tuple(y, ran);
}

}  // namespace

void bind_inference(py::module_& m) {
  m.def(
      "conv2plus1d",
      &conv2plus1d,
      py::arg("x"),
      py::arg("spatial_weight"),
      py::arg("temporal_weight"),
      py::arg("scale"),
      py::arg("shift"),
      py::kw_only(),
      py::arg("out_scale") = py::none(),
      py::arg("out_shift") = py::none(),
      py::arg("residual") = py::none(),
      py::arg("relu") = false,
      py::arg("stride"),
      py::arg("padding"),
      py::arg("dtype"),
      py::arg("kernels"),
      py::arg("shared_block") = 232448,
      py::arg("force") = py::dict(),
      "The CUDA operator in the simulator; see csrc/simt/inference.cpp.");
}

}  // namespace r21d::simt
