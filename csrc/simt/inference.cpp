// The operator's own kernels and host program (cuda/program.h) in the simulator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/program.h"
#include "simt/bindings.h"
#include "simt/launch.h"

namespace r21d::simt {
namespace {

namespace py = pybind11;
using Halves = py::array_t<uint16_t>;
using Rows = py::array_t<uint16_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Ints = std::vector<int64_t>;

// Bytes from the first to behind the last value.
size_t span(const py::array& a) {
  if (a.size() == 0) {
    return 0;
  }
  py::ssize_t bytes = a.itemsize();
  for (py::ssize_t axis = 0; axis < a.ndim(); ++axis) {
    if (a.strides(axis) < 0) {
      throw std::invalid_argument("negative strides are not served");
    }
    bytes += (a.shape(axis) - 1) * a.strides(axis);
  }
  return static_cast<size_t>(bytes);
}

// Buffers of one call and the launches that it made.
class HostDevice {
 public:
  explicit HostDevice(size_t shared_limit) : shared_limit_(shared_limit) {
  }

  void* allocate(int64_t bytes) {
    // NaN in every 16-bit format.
    std::vector<unsigned char>& held = memory_.emplace_back(static_cast<size_t>(bytes), 0xff);
    const std::string name = "scratch " + std::to_string(memory_.size());
    return buffers_.emplace_back(name, held.data(), held.size(), true).pointer<void>();
  }

  const void* input(const char* name, const py::array& a) {
    return buffers_.emplace_back(name, a.data(), span(a)).pointer<void>();
  }

  const float* vector(const char* name, const std::optional<Floats>& values) {
    return values ? static_cast<const float*>(input(name, *values)) : nullptr;
  }

  void* output(const char* name, py::array& a) {
    return buffers_.emplace_back(name, a.mutable_data(), span(a), true).pointer<void>();
  }

  template <class Params>
  void launch(
      const char* name,
      void (*kernel)(Params),
      const cuda::Grid& grid,
      int threads,
      int shared_bytes,
      const Params& params) {
    const ptx::Index3 blocks{
        static_cast<uint32_t>(grid.x),
        static_cast<uint32_t>(grid.y),
        static_cast<uint32_t>(grid.z)};
    launched.push_back(name);
    const Report report = simt::launch(
        {.kernel = name,
         .grid = blocks,
         .threads = threads,
         .dynamic_shared = static_cast<size_t>(shared_bytes),
         .shared_limit = shared_limit_},
        [&] { kernel(params); });
    uninitialised_reads += report.uninitialised_reads;
  }

  std::vector<std::string> launched;
  uint64_t uninitialised_reads = 0;

 private:
  size_t shared_limit_;
  std::deque<std::vector<unsigned char>> memory_;
  std::deque<GlobalBuffer> buffers_;
};

cuda::Strided strided(HostDevice& device, const char* name, const Halves& weight) {
  cuda::Strided out{device.input(name, weight), {}};
  for (py::ssize_t axis = 0; axis < 5; ++axis) {
    out.strides[axis] = weight.strides(axis) / 2;
  }
  return out;
}

cuda::Forced forced(const py::dict& wanted, const char* name) {
  if (!wanted.contains(name)) {
    return {};
  }
  const py::dict values = wanted[name];
  const auto value = [&](const char* key) {
    return values.contains(key) ? values[key].cast<int>() : 0;
  };
  return {value("pixel_warps"), value("columns"), value("bands"), value("chunk")};
}

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

  const cuda::Gpu gpu{132, shared_block, shared_block + cuda::kReservedShared, 800e12, 3e12};
  const cuda::ForcedPlan wanted{
      forced(force, "spatial"), forced(force, "temporal"), forced(force, "fused")};
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
