// A training step's operators, their kernels and host program (cuda/training_program.h) in the
// simulator.
#include <algorithm>
#include <limits>
#include <utility>

#include "cuda/training_program.h"
#include "simt/bindings.h"
#include "simt/host_device.h"

namespace r21d::simt {
namespace {

// What a call is run with: the problem, of x's shape (N, C, T, H, W), the dtype, the shared memory
// of a block and what of the plans is forced.
struct Call {
  SpatialGeometry s;
  TemporalGeometry t;
  std::string dtype;
  int shared_block;
  cuda::Gpu gpu;
  cuda::ForcedPlan force;
  py::dict ran;

  Call(
      const Ints& sizes,
      const Ints& kernel,
      const Ints& stride,
      const Ints& padding,
      std::string type,
      int shared,
      const py::dict& wanted)
      : dtype(std::move(type)), shared_block(shared), gpu(simulated_gpu(shared)) {
    const Geometry geometry = make_geometry(sizes, kernel, stride, padding);
    s = geometry.spatial;
    t = geometry.temporal;
    force.spatial_forward = forced(wanted, "spatial_forward");
    force.temporal_forward = forced(wanted, "temporal_forward");
    force.temporal_gradient = forced(wanted, "temporal_gradient");
    force.temporal_weight = forced(wanted, "temporal_weight");
    force.spatial_gradient = forced(wanted, "spatial_gradient");
    force.spatial_weight = forced(wanted, "spatial_weight");
    const std::string refusal = cuda::plan_training(gpu, s, t, force).refusal;
    if (!refusal.empty()) {
      throw std::invalid_argument(refusal);
    }
  }

  // Runs `program(device, tag of the dtype)`, which makes its operands on the device.
  template <class Program>
  void run(const Program& program) {
    HostDevice device(static_cast<size_t>(shared_block));
    if (dtype == "bfloat16") {
      program(device, ptx::Bfloat16{});
    } else if (dtype == "float16") {
      program(device, ptx::Float16{});
    } else {
      throw std::invalid_argument("dtype must be bfloat16 or float16");
    }
    ran["launched"] = device.launched;
    ran["uninitialised_reads"] = device.uninitialised_reads;
    ran["traffic"] = device.traffic;
  }

  int64_t mid() const {
    return cuda::mid_pitch(s);
  }
};

void describe(Call& call, const char* name, const cuda::TrainingConvPlan& plan) {
  py::dict out;
  out["pixel_warps"] = plan.pixel_warps;
  out["columns"] = plan.columns;
  out["phases"] = plan.phases;
  out["parts"] = plan.parts;
  out["entries"] = plan.entries();
  call.ran[name] = out;
}

void describe(Call& call, const char* name, const cuda::WeightPlan& plan) {
  py::dict out;
  out["pixel_warps"] = plan.row_warps;
  out["columns"] = plan.columns;
  out["parts"] = plan.parts;
  call.ran[name] = out;
}

// Filled with NaN.
Rows poisoned_rows(const Ints& shape) {
  Rows rows(shape);
  std::fill_n(rows.mutable_data(), rows.size(), uint16_t{0xffff});
  return rows;
}

Floats poisoned_vector(int64_t size) {
  Floats vector(size);
  std::fill_n(vector.mutable_data(), vector.size(), std::numeric_limits<float>::quiet_NaN());
  return vector;
}

float* output(HostDevice& device, const char* name, Floats& vector) {
  return vector.size() == 0 ? nullptr : static_cast<float*>(device.output(name, vector));
}

const void* optional_input(HostDevice& device, const char* name, const std::optional<Rows>& rows) {
  return rows ? device.input(name, *rows) : nullptr;
}

py::tuple spatial_forward(
    Call& call,
    const Rows& x,
    const Halves& weight,
    bool statistics,
    const std::optional<Floats>& in_scale,
    const std::optional<Floats>& in_shift) {
  const SpatialGeometry& s = call.s;
  Rows u = poisoned_rows({s.n, s.t, s.ho, s.wo, call.mid()});
  Floats mean = poisoned_vector(statistics ? s.m : 0);
  Floats m2 = poisoned_vector(statistics ? s.m : 0);
  call.run([&](HostDevice& device, auto type) {
    const cuda::SpatialForwardOperands operands{
        device.input("x", x),
        strided(device, "weight", weight),
        device.output("u", u),
        output(device, "mean", mean),
        output(device, "m2", m2),
        {device.vector("in_scale", in_scale), device.vector("in_shift", in_shift)}};
    const cuda::TrainingConv conv = cuda::spatial_conv_of(operands, s);
    const cuda::Forced& wanted = call.force.spatial_forward;
    const cuda::TrainingConvPlan plan =
        in_scale ? cuda::plan_training_conv<cuda::kNormForward>(call.gpu, conv, wanted)
                 : cuda::plan_training_conv<cuda::kForward>(call.gpu, conv, wanted);
    describe(call, "spatial_forward", plan);
    cuda::run_spatial_forward<decltype(type)>(device, operands, s, plan);
  });
  return py::make_tuple(u, mean, m2);
}

py::tuple temporal_forward(
    Call& call,
    const Rows& u,
    const Floats& scale,
    const Floats& shift,
    const Halves& weight,
    bool statistics) {
  const TemporalGeometry& t = call.t;
  Rows y = poisoned_rows({t.n, t.to, t.ho, t.wo, t.o});
  Floats mean = poisoned_vector(statistics ? t.o : 0);
  Floats m2 = poisoned_vector(statistics ? t.o : 0);
  call.run([&](HostDevice& device, auto type) {
    const cuda::TemporalForwardOperands operands{
        device.input("u", u),
        {device.vector("scale", scale), device.vector("shift", shift)},
        strided(device, "weight", weight),
        device.output("y", y),
        output(device, "mean", mean),
        output(device, "m2", m2)};
    const cuda::TrainingConvPlan plan = cuda::plan_training_conv<cuda::kNormForward>(
        call.gpu, cuda::temporal_forward_conv(call.s, t), call.force.temporal_forward);
    describe(call, "temporal_forward", plan);
    cuda::run_temporal_forward<decltype(type)>(device, operands, call.s, t, plan);
  });
  return py::make_tuple(y, mean, m2);
}

py::tuple temporal_backward(
    Call& call,
    const Rows& grad,
    const Rows& u,
    const Floats& scale,
    const Floats& shift,
    const Floats& mean,
    const Floats& invstd,
    const Halves& weight,
    bool need_weight,
    const std::optional<Rows>& y,
    const std::optional<Floats>& grad_factor,
    const std::optional<Floats>& y_factor,
    const std::optional<Floats>& offset) {
  const TemporalGeometry& t = call.t;
  Rows g = poisoned_rows({t.n, t.t, t.ho, t.wo, call.mid()});
  Floats sum_g = poisoned_vector(t.m);
  Floats sum_g_normalized = poisoned_vector(t.m);
  Rows grad_weight = poisoned_rows({need_weight ? t.o : 0, t.kt, t.m});
  call.run([&](HostDevice& device, auto type) {
    const cuda::TemporalBackwardOperands operands{
        device.input("grad", grad),
        {optional_input(device, "y", y),
         device.vector("grad_factor", grad_factor),
         device.vector("y_factor", y_factor),
         device.vector("offset", offset)},
        device.input("u", u),
        {device.vector("scale", scale),
         device.vector("shift", shift),
         device.vector("mean", mean),
         device.vector("invstd", invstd),
         output(device, "sum_g", sum_g),
         output(device, "sum_g_normalized", sum_g_normalized)},
        strided(device, "weight", weight),
        device.output("g", g),
        need_weight ? device.output("grad_weight", grad_weight) : nullptr};
    const cuda::BackwardPlans plans =
        cuda::plan_temporal_backward(call.gpu, operands, call.s, t, call.force);
    describe(call, "temporal_gradient", plans.gradient);
    describe(call, "temporal_weight", plans.weight);
    cuda::run_temporal_backward<decltype(type)>(device, operands, call.s, t, plans);
  });
  return py::make_tuple(g, grad_weight, sum_g, sum_g_normalized);
}

py::tuple spatial_backward(
    Call& call,
    const Rows& g,
    const Rows& u,
    const Rows& x,
    const Halves& weight,
    const Floats& g_factor,
    const std::optional<Floats>& u_factor,
    const std::optional<Floats>& offset,
    bool need_x,
    bool need_weight,
    const std::optional<Floats>& in_scale,
    const std::optional<Floats>& in_shift,
    const std::optional<Floats>& in_mean,
    const std::optional<Floats>& in_invstd,
    const std::optional<Rows>& residual) {
  const SpatialGeometry& s = call.s;
  Rows grad_x = poisoned_rows({need_x ? s.n : 0, s.t, s.h, s.w, s.c});
  Rows grad_weight = poisoned_rows({need_weight ? s.m : 0, s.kh, s.kw, s.c});
  Floats sum_g = poisoned_vector(in_scale ? s.c : 0);
  Floats sum_g_normalized = poisoned_vector(in_scale ? s.c : 0);
  call.run([&](HostDevice& device, auto type) {
    const cuda::SpatialBackwardOperands operands{
        device.input("g", g),
        {device.input("u", u),
         device.vector("g_factor", g_factor),
         device.vector("u_factor", u_factor),
         device.vector("offset", offset)},
        device.input("x", x),
        {device.vector("in_scale", in_scale),
         device.vector("in_shift", in_shift),
         device.vector("in_mean", in_mean),
         device.vector("in_invstd", in_invstd),
         output(device, "sum_g", sum_g),
         output(device, "sum_g_normalized", sum_g_normalized)},
        optional_input(device, "residual", residual),
        strided(device, "weight", weight),
        need_x ? device.output("grad_x", grad_x) : nullptr,
        need_weight ? device.output("grad_weight", grad_weight) : nullptr};
    const cuda::BackwardPlans plans =
        cuda::plan_spatial_backward(call.gpu, operands, s, call.force);
    describe(call, "spatial_gradient", plans.gradient);
    describe(call, "spatial_weight", plans.weight);
    cuda::run_spatial_backward<decltype(type)>(device, operands, s, plans);
  });
  return py::make_tuple(grad_x, grad_weight, sum_g, sum_g_normalized);
}

// Of y's shape, (N, T', H', W', O).
Ints shape_of_y(const Call& call) {
  const TemporalGeometry& t = call.t;
  return {t.n, t.to, t.ho, t.wo, t.o};
}

Rows join(
    Call& call, const Rows& y, const Floats& scale, const Floats& shift, const Rows& residual) {
  Rows out = poisoned_rows(shape_of_y(call));
  call.run([&](HostDevice& device, auto type) {
    const cuda::JoinOperands operands{
        device.input("y", y),
        device.vector("scale", scale),
        device.vector("shift", shift),
        device.input("residual", residual),
        device.output("out", out)};
    cuda::run_join<decltype(type)>(device, operands, y.size() / call.t.o, call.t.o);
  });
  return out;
}

py::tuple join_backward(
    Call& call,
    const Rows& grad,
    const Rows& out,
    const Rows& y,
    const Floats& mean,
    const Floats& invstd) {
  Rows g = poisoned_rows(shape_of_y(call));
  Floats sum_g = poisoned_vector(call.t.o);
  Floats sum_g_normalized = poisoned_vector(call.t.o);
  call.run([&](HostDevice& device, auto type) {
    const cuda::JoinBackwardOperands operands{
        device.input("grad", grad),
        device.input("out", out),
        device.input("y", y),
        device.vector("mean", mean),
        device.vector("invstd", invstd),
        device.output("g", g),
        output(device, "sum_g", sum_g),
        output(device, "sum_g_normalized", sum_g_normalized)};
    cuda::run_join_backward<decltype(type)>(device, operands, y.size() / call.t.o, call.t.o);
  });
  return py::make_tuple(g, sum_g, sum_g_normalized);
}

}  // namespace

void bind_training(py::module_& m) {
  py::class_<Call>(
      m,
      "Training",
      "A problem of sizes (N, C, T, H, W, M, O), and the operators of its training step, as "
      "csrc/schema.cpp has them. Tensors are NDHWC, so (N, T, H, W, channels); weights as torch "
      "has them, of any strides; their gradients (outputs, taps, inputs).")
      .def(
          py::init<
              const Ints&,
              const Ints&,
              const Ints&,
              const Ints&,
              std::string,
              int,
              const py::dict&>(),
          py::arg("sizes"),
          py::arg("kernel"),
          py::arg("stride"),
          py::arg("padding"),
          py::kw_only(),
          py::arg("dtype"),
          py::arg("shared_block") = 232448,
          py::arg("force") = py::dict())
      .def_readonly("ran", &Call::ran)
      .def("spatial_forward", &spatial_forward)
      .def("temporal_forward", &temporal_forward)
      .def("temporal_backward", &temporal_backward)
      .def("spatial_backward", &spatial_backward)
      .def("join", &join)
      .def("join_backward", &join_backward);
}

}  // namespace r21d::simt
