// Every operator's signature. x is (N, C, T, H, W), u and v (N, M, T, H', W'), y (N, O, T', H',
// W'), all NDHWC; spatial_weight (M, C, 1, d, d), temporal_weight (O, M, t, 1, 1); per-channel
// vectors float32; stride and padding (t, h, w).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(r21d, m) {
  // temporal(relu(spatial(x) * scale + shift)) * out_scale + out_shift + residual, relu; kernels:
  // "fused" where that can run, "two", or "" for the device's own choice; force: for tests, parts
  // of the CUDA plan as in cuda_plan
  m.def(
      "conv2plus1d(Tensor x, Tensor spatial_weight, Tensor temporal_weight, Tensor scale, "
      "Tensor shift, Tensor? out_scale, Tensor? out_shift, Tensor? residual, bool relu, "
      "int[] stride, int[] padding, str kernels=\"\", str force=\"\") -> Tensor");
  // u, and with `statistics` its mean and sum of squared deviations per channel
  m.def(
      "spatial_forward(Tensor x, Tensor weight, int[] stride, int[] padding, bool statistics) "
      "-> (Tensor, Tensor, Tensor)");
  // temporal(relu(u * scale + shift))
  m.def(
      "temporal_forward(Tensor u, Tensor scale, Tensor shift, Tensor weight, int[] stride, "
      "int[] padding) -> Tensor");
  // relu(u * scale + shift)
  m.def("norm_relu(Tensor u, Tensor scale, Tensor shift) -> Tensor");
  // g = grad where relu passes; the sums over pixels of g and of g * (u - mean) * invstd
  m.def(
      "norm_relu_backward(Tensor grad, Tensor u, Tensor scale, Tensor shift, Tensor mean, "
      "Tensor invstd) -> (Tensor, Tensor, Tensor)");
  // g * g_factor + u * u_factor + offset
  m.def(
      "norm_backward(Tensor g, Tensor u, Tensor g_factor, Tensor? u_factor, Tensor? offset) "
      "-> Tensor");
  // ---- training on CUDA devices. u and g hold M rounded up to 16 channels, zeros beyond M; what
  // is not wanted comes back empty.

  // u of relu(x * in_scale + in_shift), or of x; its statistics
  m.def(
      "train_spatial(Tensor x, Tensor weight, int[] stride, int[] padding, bool statistics, "
      "Tensor? in_scale, Tensor? in_shift, str force=\"\") -> (Tensor, Tensor, Tensor)");
  // y = temporal(relu(u * scale + shift)); its statistics
  m.def(
      "train_temporal(Tensor u, Tensor scale, Tensor shift, Tensor weight, int[] stride, "
      "int[] padding, bool statistics, str force=\"\") -> (Tensor, Tensor, Tensor)");
  // from the gradient grad, or grad * grad_factor + y * y_factor + offset, at y: g = the gradient
  // at u * scale + shift; weight's; the sums over pixels of g and of g * (u - mean) * invstd
  m.def(
      "train_temporal_backward(Tensor grad, Tensor u, Tensor scale, Tensor shift, Tensor mean, "
      "Tensor invstd, Tensor weight, int[] stride, int[] padding, bool need_weight, Tensor? y, "
      "Tensor? grad_factor, Tensor? y_factor, Tensor? offset, str force=\"\") "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // from the gradient g * g_factor + u * u_factor + offset at u: x's, with residual added, and
  // weight's; with in_scale the gradient at x * in_scale + in_shift, and the sums over pixels of it
  // and of it * (x - in_mean) * in_invstd
  m.def(
      "train_spatial_backward(Tensor g, Tensor u, Tensor x, Tensor weight, Tensor g_factor, "
      "Tensor? u_factor, Tensor? offset, int[] stride, int[] padding, bool need_x, "
      "bool need_weight, Tensor? in_scale, Tensor? in_shift, Tensor? in_mean, Tensor? in_invstd, "
      "Tensor? residual, str force=\"\") -> (Tensor, Tensor, Tensor, Tensor)");
  // relu(y * scale + shift + residual)
  m.def("join(Tensor y, Tensor scale, Tensor shift, Tensor residual) -> Tensor");
  // g = grad where out, which join made, is above zero; the sums over pixels of g and of
  // g * (y - mean) * invstd
  m.def(
      "join_backward(Tensor grad, Tensor out, Tensor y, Tensor mean, Tensor invstd) "
      "-> (Tensor, Tensor, Tensor)");
  // JSON: what the library was built with and what this machine offers
  m.def("build_info() -> str");
  // JSON: its part about CUDA, null where the library is built without; of one device, or -1: all
  m.def("cuda_info(int device=-1) -> str");
  // JSON: how the CUDA kernels would run a problem on a GPU. sizes: N, C, T, H, W, M, O; gpu:
  // multiprocessors, bytes of shared memory of a block and of a multiprocessor, and the GFLOP/s
  // and GB/s of a large matrix product and copy; force: "" or such as "fused.mids=48"
  m.def(
      "cuda_plan(int[] sizes, int[] kernel, int[] stride, int[] padding, int[] gpu, "
      "str force=\"\") -> str");
  // for tests: what an instruction of cuda/ptx.cuh does, int32 words in and out (cuda/probes.cuh)
  m.def("cuda_probe(Tensor input, str name) -> Tensor");
  // names of the CPU instruction sets that can run here, best first
  m.def("cpu_isas() -> str");
}
