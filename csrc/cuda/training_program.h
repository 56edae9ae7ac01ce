// The host's side of a training step's CUDA operators, as program.h is of inference: what is
// packed, which kernels are launched, with which parameters.
#pragma once

#include <cstdint>

#include "cuda/join.cuh"
#include "cuda/program.h"
#include "cuda/training_planner.h"
#include "cuda/weight_gradient.cuh"

namespace r21d::cuda {

// u and g hold mid_pitch() channels, zeros beyond M. In a residual block the operators reach
// further, over the outer BatchNorms: x is then relu(y·scale + shift) of the convolution before,
// and the gradient at y that of what follows its BatchNorm.

// scale and shift of relu(x·scale + shift); null: x as it is.
struct NormReluOperands {
  const float* scale;
  const float* shift;
};

// The gradient at y as grad·factor + y·y_factor + offset; factor null: grad as it is, y_factor
// null: without the other two terms.
struct NormGradientOperands {
  const void* y;
  const float* factor;
  const float* y_factor;
  const float* offset;
};

// What the gradient at relu(x·scale + shift) goes back through, and its sums; scale null: nothing.
struct ReluBackwardOperands {
  const float* scale;
  const float* shift;
  const float* mean;
  const float* invstd;
  float* sum_g;
  float* sum_g_normalized;
};

struct SpatialForwardOperands {
  const void* x;   // NDHWC
  Strided weight;  // (M, C, 1, kh, kw)
  void* u;
  float* mean;  // (M); null: no statistics
  float* m2;
  NormReluOperands norm;  // of x
};

struct TemporalForwardOperands {
  const void* u;
  NormReluOperands norm;  // of u, (M)
  Strided weight;         // (O, M, kt, 1, 1)
  void* y;
  float* mean;  // (O); null: no statistics
  float* m2;
};

struct TemporalBackwardOperands {
  const void* grad;           // at y, or behind y's BatchNorm
  NormGradientOperands norm;  // of y
  const void* u;
  ReluBackwardOperands relu;  // of u
  Strided weight;
  void* g;
  void* grad_weight;  // (O, kt, M), or null
};

struct SpatialBackwardOperands {
  const void* g;
  NormGradientOperands norm;  // of u
  const void* x;
  ReluBackwardOperands relu;  // of x
  const void* residual;       // added to grad_x where that is not summed, or null
  Strided weight;
  void* grad_x;       // NDHWC, or null
  void* grad_weight;  // (M, kh·kw, C), or null
};

struct JoinOperands {
  const void* y;  // (rows, channels)
  const float* scale;
  const float* shift;
  const void* residual;
  void* out;
};

struct JoinBackwardOperands {
  const void* grad;
  const void* out;
  const void* y;
  const float* mean;
  const float* invstd;
  void* g;
  float* sum_g;
  float* sum_g_normalized;
};

inline bool are_aligned(std::initializer_list<const void*> all) {
  for (const void* data : all) {
    if (!is_aligned(data)) {
      return false;
    }
  }
  return true;
}

// ---- a convolution and the sums of its output

template <class T, int Work, class Device>
void launch_training_conv(Device& device, const TrainingConvPlan& plan, const ConvParams& params) {
  const auto launch = [&](const ConvParams& p, int64_t depth) {
    const Grid grid{plan.grid_x, plan.grid_y, depth};
#define R21D_LAUNCH(kWarps, kColumns)                                                         \
  if (plan.pixel_warps == kWarps && plan.columns == kColumns) {                               \
    using Tile = ConvTile<kWarps, kColumns, Work>;                                            \
    device.launch("conv", conv_kernel<T, Tile>, grid, Tile::kThreads, Tile::kSharedBytes, p); \
  }
    R21D_TRAINING_TILES(R21D_LAUNCH)
#undef R21D_LAUNCH
  };
  ConvParams p = params;
  p.split.parts = plan.parts;
  if (plan.parts > 1) {
    p.split.partial = static_cast<float*>(device.allocate(plan.partial_bytes()));
    p.split.part = kOnePart;
    launch(p, int64_t{plan.phases} * plan.parts);
    p.split.part = kAddUp;
  }
  launch(p, plan.phases);
}

// Memory for `entries` rows of sums; of one alone it is the result's own.
template <class Device>
float* rows_of_sums(Device& device, int64_t entries, int64_t columns, float* result) {
  return entries == 1 ? result : static_cast<float*>(device.allocate(entries * columns * 4));
}

// The rows of sums in m.merged_first and m.merged_second to one, in `first` and `second`.
template <class Device>
void merge_sums(Device& device, MergeParams m, int64_t entries, float* first, float* second) {
  while (entries > 1) {
    m.first = m.merged_first;
    m.second = m.merged_second;
    m.entries = static_cast<int>(entries);
    entries = ceil_div(entries, kMergeEntries);
    m.merged_first = rows_of_sums(device, entries, m.columns, first);
    m.merged_second = rows_of_sums(device, entries, m.columns, second);
    device.merge(Grid{entries, ceil_div(m.columns, kMergeColumns), 1}, m);
    m.values *= kMergeEntries;
  }
}

// As launch_training_conv(), with the sums of all tiles' pixels in `first` and `second`.
template <class T, int Work, class Device>
void launch_summing_conv(
    Device& device, const TrainingConvPlan& plan, ConvParams p, float* first, float* second) {
  const int64_t entries = plan.entries();
  p.sums.first = rows_of_sums(device, entries, p.epilogue.columns, first);
  p.sums.second = rows_of_sums(device, entries, p.epilogue.columns, second);
  launch_training_conv<T, Work>(device, plan, p);
  MergeParams m{};
  m.merged_first = p.sums.first;
  m.merged_second = p.sums.second;
  m.columns = p.epilogue.columns;
  m.values = int64_t{kWarpPixels} * plan.pixel_warps;
  m.all_values = p.pixels;
  m.kind = p.sums.kind;
  merge_sums(device, m, entries, first, second);
}

inline ConvParams training_params(const TrainingConv& conv) {
  ConvParams p = conv_params(conv.problem, conv.stride_rows, conv.stride_cols);
  p.epilogue.columns = static_cast<int>(conv.problem.columns);
  p.epilogue.pitch = static_cast<int>(conv.problem.pitch);
  return p;
}

// ---- the weight of a transposed convolution: (inputs, taps in reverse order, outputs)

template <class Device>
const void* pack_transposed(
    Device& device,
    const Strided& w,
    int64_t inputs,
    int64_t outputs,
    int64_t padded,
    const int64_t (&taps)[2],
    const int64_t (&tap_strides)[2]) {
  PackParams p{};
  const int64_t last = (taps[0] - 1) * tap_strides[0] + (taps[1] - 1) * tap_strides[1];
  p.in = static_cast<const uint16_t*>(w.data) + last;
  p.stride_outer = w.strides[1];
  p.stride_row = -tap_strides[0];
  p.stride_col = -tap_strides[1];
  p.stride_inner = w.strides[0];
  p.outer = static_cast<int>(inputs);
  p.rows = static_cast<int>(taps[0]);
  p.cols = static_cast<int>(taps[1]);
  p.inner = static_cast<int>(outputs);
  p.padded = static_cast<int>(padded);
  p.length = static_cast<int>(taps[0] * taps[1] * padded);
  return pack(device, p);
}

// ---- prologues and sums

// relu(x·scale + shift) on the way in.
inline Prologue prologue_of(const NormReluOperands& norm, int64_t channels) {
  Prologue p{};
  p.factor = norm.scale;
  p.offset = norm.shift;
  p.channels = static_cast<int>(channels);
  p.chunks = are_aligned({norm.scale, norm.shift});
  return p;
}

// The backward pass of a BatchNorm on the way in; `second` holds the rows of norm.y.
inline Prologue prologue_of(
    const NormGradientOperands& norm, const void* second, int64_t channels) {
  Prologue p{};
  p.factor = norm.factor;
  p.channels = static_cast<int>(channels);
  p.chunks = is_aligned(norm.factor);
  if (norm.y_factor != nullptr) {
    p.second = second;
    p.second_factor = norm.y_factor;
    p.offset = norm.offset;
    p.chunks = are_aligned({norm.factor, norm.y_factor, norm.offset});
  }
  return p;
}

// `rows`: of what went through ReLU.
inline Sums sums_of(const ReluBackwardOperands& relu, const void* rows) {
  Sums s{};
  s.kind = kReluBackward;
  s.u = rows;
  s.scale = relu.scale;
  s.shift = relu.shift;
  s.mean = relu.mean;
  s.invstd = relu.invstd;
  s.chunks = are_aligned({relu.scale, relu.shift, relu.mean, relu.invstd});
  return s;
}

// ---- the operators, each with the plan of its convolution

inline TrainingConv spatial_conv_of(const SpatialForwardOperands& in, const SpatialGeometry& s) {
  return in.norm.scale == nullptr ? spatial_forward_conv(s) : normed_spatial_conv(s);
}

template <class T, int Work, class Device>
void run_forward(
    Device& device, const TrainingConvPlan& plan, ConvParams p, float* mean, float* m2) {
  if (mean == nullptr) {
    launch_training_conv<T, Work>(device, plan, p);
    return;
  }
  p.sums.kind = kStatistics;
  launch_summing_conv<T, Work>(device, plan, p, mean, m2);
}

template <class T, class Device>
void run_spatial_forward(
    Device& device,
    const SpatialForwardOperands& in,
    const SpatialGeometry& s,
    const TrainingConvPlan& plan) {
  ConvParams p = training_params(spatial_conv_of(in, s));
  p.weight = pack_spatial(device, in.weight, s, p.channels, p.depth);
  p.epilogue.out = in.u;
  p.epilogue.chunks = is_aligned(in.u);
  if (in.norm.scale == nullptr) {
    p.x = readable_input(device, in.x, s);
    run_forward<T, kForward>(device, plan, p, in.mean, in.m2);
    return;
  }
  p.x = readable_rows(device, in.x, s.n * s.t * s.h * s.w, s.c, p.channels);
  p.prologue = prologue_of(in.norm, s.c);
  run_forward<T, kNormForward>(device, plan, p, in.mean, in.m2);
}

template <class T, class Device>
void run_temporal_forward(
    Device& device,
    const TemporalForwardOperands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const TrainingConvPlan& plan) {
  const int64_t pitch = mid_pitch(s);
  ConvParams p = training_params(temporal_forward_conv(s, t));
  p.x = readable_rows(device, in.u, t.n * t.t * t.ho * t.wo, pitch, pitch);
  p.weight = pack_temporal(device, in.weight, t, pitch);
  p.prologue = prologue_of(in.norm, t.m);
  p.epilogue.out = in.y;
  p.epilogue.chunks = t.o % kChunk == 0 && is_aligned(in.y);
  run_forward<T, kNormForward>(device, plan, p, in.mean, in.m2);
}

template <class T, int Work, class Device>
void launch_weight_gradient(Device& device, const WeightPlan& plan, WeightGradientParams p) {
  const auto launch = [&](int64_t parts) {
    const Grid grid{plan.grid_x, plan.grid_y, parts};
#define R21D_LAUNCH(kWarps, kColumns)                         \
  if (plan.row_warps == kWarps && plan.columns == kColumns) { \
    using Tile = WeightTile<kWarps, kColumns, Work>;          \
    device.launch(                                            \
        "weight_gradient",                                    \
        weight_gradient_kernel<T, Tile>,                      \
        grid,                                                 \
        Tile::kThreads,                                       \
        Tile::kSharedBytes,                                   \
        p);                                                   \
  }
    R21D_WEIGHT_TILES(R21D_LAUNCH)
#undef R21D_LAUNCH
  };
  p.part_pixels = plan.part_pixels;
  p.split.parts = plan.parts;
  if (plan.parts > 1) {
    p.split.partial = static_cast<float*>(device.allocate(plan.partial_bytes()));
    p.split.part = kOnePart;
    launch(plan.parts);
    p.split.part = kAddUp;
  }
  launch(1);
}

// The weight's gradient of a forward convolution; without the tensors and the prologues.
inline WeightGradientParams weight_params(
    const WeightProblem& w, const TrainingConv& forward, int64_t inputs) {
  const ConvProblem& c = forward.problem;
  WeightGradientParams p{};
  p.row_count = static_cast<int>(w.rows);
  p.rows_pitch = static_cast<int>(w.rows_pitch);
  p.pixels = static_cast<int>(w.pixels);
  p.image_rows = static_cast<int>(c.rows);
  p.image_cols = static_cast<int>(c.cols);
  p.channels = static_cast<int>(w.channels);
  p.out_rows = static_cast<int>(c.out_rows);
  p.out_cols = static_cast<int>(c.out_cols);
  p.kernel_rows = static_cast<int>(c.kernel_rows);
  p.kernel_cols = static_cast<int>(c.kernel_cols);
  p.stride_rows = static_cast<int>(forward.stride_rows);
  p.stride_cols = static_cast<int>(forward.stride_cols);
  p.padding_rows = static_cast<int>(c.padding_rows);
  p.padding_cols = static_cast<int>(c.padding_cols);
  p.column_count = static_cast<int>(w.columns());
  p.narrow = w.narrow;
  p.inputs = static_cast<int>(inputs);
  return p;
}

// The plans of a backward pass, which depend on what is mapped on the way in.
struct BackwardPlans {
  TrainingConvPlan gradient;
  WeightPlan weight;
};

inline BackwardPlans plan_temporal_backward(
    const Gpu& gpu,
    const TemporalBackwardOperands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const ForcedPlan& forced) {
  const TrainingConv conv = temporal_gradient_conv(s, t);
  const WeightProblem problem = temporal_weight_problem(s, t);
  if (in.norm.factor == nullptr) {
    return {
        plan_training_conv<kGradient>(gpu, conv, forced.temporal_gradient),
        plan_weight<kNormColumns>(gpu, problem, forced.temporal_weight)};
  }
  return {
      plan_training_conv<kNormGradient>(gpu, conv, forced.temporal_gradient),
      plan_weight<kNormBoth>(gpu, problem, forced.temporal_weight)};
}

inline BackwardPlans plan_spatial_backward(
    const Gpu& gpu,
    const SpatialBackwardOperands& in,
    const SpatialGeometry& s,
    const ForcedPlan& forced) {
  return {
      plan_training_conv<kNormGradient>(gpu, spatial_gradient_conv(s), forced.spatial_gradient),
      in.relu.scale == nullptr
          ? plan_weight<kNormRows>(gpu, spatial_weight_problem(s), forced.spatial_weight)
          : plan_weight<kNormBoth>(gpu, normed_spatial_weight_problem(s), forced.spatial_weight)};
}

template <class T, class Device>
void run_temporal_backward(
    Device& device,
    const TemporalBackwardOperands& in,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const BackwardPlans& plans) {
  const int64_t pitch = mid_pitch(s);
  const int64_t pixels = t.ho * t.wo;
  const int64_t channels = gradient_channels(t);
  const int64_t out_pixels = t.n * t.to * pixels;
  const bool normed = in.norm.factor != nullptr;
  const void* grad = readable_rows(device, in.grad, out_pixels, t.o, channels);
  const void* u = readable_rows(device, in.u, t.n * t.t * pixels, pitch, pitch);
  Prologue norm{};
  if (normed) {
    const bool reads_y = in.norm.y_factor != nullptr;
    const void* y = reads_y ? readable_rows(device, in.norm.y, out_pixels, t.o, channels) : nullptr;
    norm = prologue_of(in.norm, y, t.o);
  }

  ConvParams p = training_params(temporal_gradient_conv(s, t));
  p.x = grad;
  p.prologue = norm;
  p.weight =
      pack_transposed(device, in.weight, t.m, t.o, channels, {t.kt, 1}, {in.weight.strides[2], 0});
  p.epilogue.out = in.g;
  p.epilogue.chunks = is_aligned(in.g);
  p.sums = sums_of(in.relu, u);
  float* first = in.relu.sum_g;
  float* second = in.relu.sum_g_normalized;
  if (normed) {
    launch_summing_conv<T, kNormGradient>(device, plans.gradient, p, first, second);
  } else {
    launch_summing_conv<T, kGradient>(device, plans.gradient, p, first, second);
  }

  if (in.grad_weight == nullptr) {
    return;
  }
  WeightGradientParams w =
      weight_params(temporal_weight_problem(s, t), temporal_forward_conv(s, t), t.m);
  w.rows = grad;
  w.rows_prologue = norm;
  w.columns = u;
  w.columns_prologue = prologue_of(NormReluOperands{in.relu.scale, in.relu.shift}, t.m);
  w.out = in.grad_weight;
  if (normed) {
    launch_weight_gradient<T, kNormBoth>(device, plans.weight, w);
  } else {
    launch_weight_gradient<T, kNormColumns>(device, plans.weight, w);
  }
}

template <class T, class Device>
void run_spatial_backward(
    Device& device,
    const SpatialBackwardOperands& in,
    const SpatialGeometry& s,
    const BackwardPlans& plans) {
  const int64_t pitch = mid_pitch(s);
  const int64_t pixels = s.n * s.t * s.ho * s.wo;
  const bool normed = in.relu.scale != nullptr;
  const void* g = readable_rows(device, in.g, pixels, pitch, pitch);
  const bool reads_u = in.norm.y_factor != nullptr;
  const void* u = reads_u ? readable_rows(device, in.norm.y, pixels, pitch, pitch) : nullptr;
  const Prologue norm = prologue_of(in.norm, u, s.m);

  if (in.grad_x != nullptr) {
    ConvParams p = training_params(spatial_gradient_conv(s));
    p.x = g;
    p.prologue = norm;
    p.weight = pack_transposed(
        device,
        in.weight,
        s.c,
        s.m,
        pitch,
        {s.kh, s.kw},
        {in.weight.strides[3], in.weight.strides[4]});
    p.epilogue.out = in.grad_x;
    p.epilogue.chunks = s.c % kChunk == 0 && are_aligned({in.grad_x, in.x, in.residual});
    p.epilogue.residual = in.residual;
    if (normed) {
      p.sums = sums_of(in.relu, in.x);
      float* first = in.relu.sum_g;
      launch_summing_conv<T, kNormGradient>(
          device, plans.gradient, p, first, in.relu.sum_g_normalized);
    } else {
      launch_training_conv<T, kNormGradient>(device, plans.gradient, p);
    }
  }
  if (in.grad_weight == nullptr) {
    return;
  }
  const int64_t in_pixels = s.n * s.t * s.h * s.w;
  if (normed) {
    const WeightProblem problem = normed_spatial_weight_problem(s);
    WeightGradientParams w = weight_params(problem, normed_spatial_conv(s), s.c);
    w.rows = g;
    w.rows_prologue = norm;
    w.columns = readable_rows(device, in.x, in_pixels, s.c, problem.channels);
    w.columns_prologue = prologue_of(NormReluOperands{in.relu.scale, in.relu.shift}, s.c);
    w.out = in.grad_weight;
    launch_weight_gradient<T, kNormBoth>(device, plans.weight, w);
  } else {
    WeightGradientParams w = weight_params(spatial_weight_problem(s), spatial_forward_conv(s), s.c);
    w.rows = g;
    w.rows_prologue = norm;
    w.columns = readable_input(device, in.x, s);
    w.out = in.grad_weight;
    launch_weight_gradient<T, kNormRows>(device, plans.weight, w);
  }
}

// ---- where a residual block ends

inline constexpr int kJoinRows = 16;          // of a thread
inline constexpr int64_t kJoinBlocks = 2048;  // more only wait for each other

// Without the tensors: threads side by side and the rows of a block.
inline JoinParams join_params(int64_t rows, int64_t channels) {
  JoinParams p{};
  p.rows = rows;
  p.channels = static_cast<int>(channels);
  p.chunk_lanes = 1;
  while (p.chunk_lanes < 32 && p.chunk_lanes * kChunk < channels) {
    p.chunk_lanes *= 2;
  }
  p.block_rows = kJoinThreads / p.chunk_lanes * kJoinRows;
  return p;
}

inline Grid join_grid(const JoinParams& p, int64_t blocks) {
  return {blocks, ceil_div(p.channels, int64_t{p.chunk_lanes} * kChunk), 1};
}

template <class T, class Device>
void run_join(Device& device, const JoinOperands& in, int64_t rows, int64_t channels) {
  JoinParams p = join_params(rows, channels);
  p.y = in.y;
  p.other = in.residual;
  p.out = in.out;
  p.first = in.scale;
  p.second = in.shift;
  p.chunks = channels % kChunk == 0 && are_aligned({in.y, in.residual, in.out});
  p.vector_chunks = are_aligned({in.scale, in.shift});
  const int64_t blocks = std::min(kJoinBlocks, ceil_div(rows, p.block_rows));
  device.launch("join", join_kernel<T>, join_grid(p, blocks), kJoinThreads, 0, p);
}

template <class T, class Device>
void run_join_backward(
    Device& device, const JoinBackwardOperands& in, int64_t rows, int64_t channels) {
  JoinParams p = join_params(rows, channels);
  p.y = in.y;
  p.other = in.grad;
  p.passed = in.out;
  p.out = in.g;
  p.first = in.mean;
  p.second = in.invstd;
  p.chunks = channels % kChunk == 0 && are_aligned({in.grad, in.out, in.y, in.g});
  p.vector_chunks = are_aligned({in.mean, in.invstd});
  const int64_t entries = ceil_div(rows, p.block_rows);
  p.sum = rows_of_sums(device, entries, channels, in.sum_g);
  p.sum_normalized = rows_of_sums(device, entries, channels, in.sum_g_normalized);
  const Grid grid = join_grid(p, entries);
  device.launch("join_backward", join_backward_kernel<T>, grid, kJoinThreads, 0, p);
  MergeParams m{};
  m.merged_first = p.sum;
  m.merged_second = p.sum_normalized;
  m.columns = p.channels;
  m.values = p.block_rows;
  m.all_values = rows;
  m.kind = kReluBackward;
  merge_sums(device, m, entries, in.sum_g, in.sum_g_normalized);
}

}  // namespace r21d::cuda
