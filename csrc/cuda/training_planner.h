// How the CUDA kernels run a training step's convolutions: which tile, and into how many parts a
// long sum over few tiles is cut. Pure host code; the model of a launch's time is planner.h's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "cuda/planner.h"

namespace r21d::cuda {

// ---- assumed, never measured
// Another launch, and the time until its blocks are at work.
inline constexpr double kLaunchSeconds = 4e-6;

// Parts of a sum, and steps that a part has at least.
inline constexpr int64_t kMostParts = 64;
inline constexpr int64_t kStepsOfPart = 4;
inline constexpr int64_t kMostGridZ = 65535;
inline constexpr int64_t kMostSummed = kMaxGridY * kMergeColumns;

// A convolution, forward, or transposed: then x is the gradient at the output, strides and padding
// are the forward convolution's, and columns are its inputs.
struct TrainingConv {
  ConvProblem problem;
  int64_t stride_rows, stride_cols;
  bool transposed;

  int64_t phase_rows() const {
    return transposed ? std::min(stride_rows, problem.out_rows) : 1;
  }
  int64_t phase_cols() const {
    return transposed ? std::min(stride_cols, problem.out_cols) : 1;
  }
  int64_t phases() const {
    return phase_rows() * phase_cols();
  }
  // Pixels of the largest phase, over all images.
  int64_t phase_pixels() const {
    return problem.images * ceil_div(problem.out_rows, phase_rows()) *
           ceil_div(problem.out_cols, phase_cols());
  }
};

inline TrainingConv spatial_forward_conv(const SpatialGeometry& s) {
  return {spatial_problem(s), s.sh, s.sw, false};
}

// The same of a normalized x, of which rows are always read in chunks.
inline TrainingConv normed_spatial_conv(const SpatialGeometry& s) {
  TrainingConv conv = spatial_forward_conv(s);
  conv.problem.channels = round_up(s.c, kChunk);
  conv.problem.narrow = false;
  return conv;
}

inline TrainingConv temporal_forward_conv(const SpatialGeometry& s, const TemporalGeometry& t) {
  return {temporal_problem(s, t), t.st, 1, false};
}

// The gradient at y, as it is read: rows of 16-byte chunks.
inline int64_t gradient_channels(const TemporalGeometry& t) {
  return round_up(t.o, kChunk);
}

inline TrainingConv temporal_gradient_conv(const SpatialGeometry& s, const TemporalGeometry& t) {
  const int64_t pixels = t.ho * t.wo;
  return {
      {t.n,
       t.to,
       pixels,
       gradient_channels(t),
       t.t,
       pixels,
       s.m,
       mid_pitch(s),
       t.kt,
       1,
       t.pt,
       0,
       false},
      t.st,
      1,
      true};
}

inline TrainingConv spatial_gradient_conv(const SpatialGeometry& s) {
  return {
      {s.n * s.t, s.ho, s.wo, mid_pitch(s), s.h, s.w, s.c, s.c, s.kh, s.kw, s.ph, s.pw, false},
      s.sh,
      s.sw,
      true};
}

struct TrainingConvPlan {
  int pixel_warps, columns;  // 0: no tile is what was forced and fits
  int threads, stages, shared_bytes, registers;
  int grid_x, grid_y, phases, parts;
  int blocks_per_multiprocessor;
  Cost cost;

  // Rows of the channels' sums.
  int64_t entries() const {
    return int64_t{grid_x} * phases;
  }
  int64_t partial_bytes() const {
    const int64_t pixels = int64_t{grid_x} * kWarpPixels * pixel_warps;
    return parts * phases * pixels * grid_y * columns * 4;
  }
};

template <class Tile>
TrainingConvPlan training_conv_with(const Gpu& gpu, const TrainingConv& conv, int64_t parts) {
  constexpr int64_t kStepDepth = Tile::kDepthChunks * kChunk;
  const ConvProblem& p = conv.problem;
  TrainingConvPlan plan{};
  plan.pixel_warps = Tile::kPixelWarps;
  plan.columns = Tile::kColumns;
  plan.threads = Tile::kThreads;
  plan.stages = Tile::kStages;
  plan.shared_bytes = Tile::kSharedBytes;
  plan.registers = Tile::kRegisters;
  plan.grid_x = static_cast<int>(ceil_div(conv.phase_pixels(), Tile::kPixels));
  plan.grid_y = static_cast<int>(ceil_div(p.pitch, Tile::kColumns));
  plan.phases = static_cast<int>(conv.phases());
  plan.parts = static_cast<int>(parts);
  plan.blocks_per_multiprocessor =
      resident_blocks(gpu, plan.threads, plan.registers, plan.shared_bytes);
  if (plan.blocks_per_multiprocessor == 0) {
    return plan;
  }
  // Of an average phase and part.
  const double depth = static_cast<double>(p.depth()) / plan.phases / plan.parts;
  const double steps = std::ceil(depth / kStepDepth);
  const double read = p.narrow ? static_cast<double>(Tile::kColumns)
                               : static_cast<double>(Tile::kPixels + Tile::kColumns);
  const BlockWork work{
      2.0 * Tile::kPixels * Tile::kColumns * steps * kStepDepth,
      p.narrow ? Tile::kPixels * depth / kGatheredValues : 0.0,
      (steps + Tile::kStages) * kStepSeconds,
      2.0 * read * depth};
  const double second = Tile::kHasSecond ? 2.0 : 1.0;
  const double input = second * static_cast<double>(p.images * p.rows * p.cols) * p.channels;
  const double output = static_cast<double>(p.pixels()) * p.pitch;
  const double weights = static_cast<double>(p.columns) * static_cast<double>(p.depth());
  const double partial = parts > 1 ? 2.0 * static_cast<double>(plan.partial_bytes()) : 0.0;
  const double blocks = static_cast<double>(plan.entries()) * plan.grid_y * plan.parts;
  plan.cost = cost_of(
      gpu,
      work,
      blocks,
      plan.blocks_per_multiprocessor,
      2.0 * (input + output + weights) + partial);
  plan.cost.seconds += parts > 1 ? kLaunchSeconds : 0.0;
  return plan;
}

// The best of all tiles and numbers of parts; `pixel_warps` 0 if there is none.
template <int Work>
TrainingConvPlan plan_training_conv(
    const Gpu& gpu, const TrainingConv& conv, const Forced& forced) {
  TrainingConvPlan best{};
  const auto consider = [&](auto tile) {
    using Tile = decltype(tile);
    if (!allows(forced.pixel_warps, Tile::kPixelWarps) || !allows(forced.columns, Tile::kColumns)) {
      return;
    }
    const int64_t steps =
        ceil_div(conv.problem.depth() / conv.phases(), int64_t{Tile::kDepthChunks} * kChunk);
    const int64_t most = std::min(
        {kMostParts, std::max<int64_t>(1, steps / kStepsOfPart), kMostGridZ / conv.phases()});
    for (int64_t parts = forced.parts > 0 ? forced.parts : 1; parts > 0;) {
      const TrainingConvPlan plan = training_conv_with<Tile>(gpu, conv, parts);
      if (plan.blocks_per_multiprocessor == 0) {
        return;
      }
      if (best.pixel_warps == 0 || plan.cost.seconds < best.cost.seconds) {
        best = plan;
      }
      const int64_t blocks = plan.entries() * plan.grid_y * parts;
      const bool fills = blocks >= int64_t{gpu.multiprocessors} * plan.blocks_per_multiprocessor;
      parts = forced.parts > 0 || fills || parts >= most ? 0 : parts + 1;
    }
  };
#define R21D_CONSIDER(kWarps, kColumns) consider(ConvTile<kWarps, kColumns, Work>{});
  R21D_TRAINING_TILES(R21D_CONSIDER)
#undef R21D_CONSIDER
  return best;
}

// ---- the weights' gradients

struct WeightProblem {
  int64_t pixels;            // of the output, over all images
  int64_t rows, rows_pitch;  // channels of the output
  int64_t taps, channels;    // of the input, as it is read
  int64_t input_pixels;
  bool narrow;

  int64_t columns() const {
    return taps * channels;
  }
};

inline WeightProblem temporal_weight_problem(const SpatialGeometry& s, const TemporalGeometry& t) {
  const int64_t pixels = t.n * t.ho * t.wo;
  return {pixels * t.to, t.o, gradient_channels(t), t.kt, mid_pitch(s), pixels * t.t, false};
}

inline WeightProblem spatial_weight_problem(const SpatialGeometry& s) {
  return {
      s.n * s.t * s.ho * s.wo,
      s.m,
      mid_pitch(s),
      s.kh * s.kw,
      read_channels(s),
      s.n * s.t * s.h * s.w,
      is_narrow(s)};
}

inline WeightProblem normed_spatial_weight_problem(const SpatialGeometry& s) {
  WeightProblem problem = spatial_weight_problem(s);
  problem.channels = round_up(s.c, kChunk);
  problem.narrow = false;
  return problem;
}

struct WeightPlan {
  int row_warps, rows, columns;  // 0: no tile is what was forced and fits
  int threads, stages, shared_bytes, registers;
  int grid_x, grid_y, parts, part_pixels;
  int blocks_per_multiprocessor;
  Cost cost;

  int64_t partial_bytes() const {
    return int64_t{parts} * grid_y * rows * grid_x * columns * 4;
  }
};

template <class Tile>
WeightPlan weight_with(const Gpu& gpu, const WeightProblem& p, int64_t parts) {
  WeightPlan plan{};
  plan.row_warps = Tile::kRowWarps;
  plan.rows = Tile::kRows;
  plan.columns = Tile::kColumns;
  plan.threads = Tile::kThreads;
  plan.stages = Tile::kStages;
  plan.shared_bytes = Tile::kSharedBytes;
  plan.registers = Tile::kRegisters;
  plan.grid_x = static_cast<int>(ceil_div(p.columns(), Tile::kColumns));
  plan.grid_y = static_cast<int>(ceil_div(p.rows, Tile::kRows));
  const int64_t steps = std::max<int64_t>(1, ceil_div(p.pixels, Tile::kDepth));
  const int64_t part_steps = ceil_div(steps, std::min(parts, steps));
  plan.part_pixels = static_cast<int>(part_steps * Tile::kDepth);
  plan.parts = static_cast<int>(ceil_div(steps, part_steps));
  plan.blocks_per_multiprocessor =
      resident_blocks(gpu, plan.threads, plan.registers, plan.shared_bytes);
  if (plan.blocks_per_multiprocessor == 0) {
    return plan;
  }
  const double pixels = static_cast<double>(part_steps) * Tile::kDepth;
  const double second = Tile::kHasRows ? 2.0 : 1.0;
  const double read = Tile::kRows * second + (p.narrow ? 0.0 : Tile::kColumns);
  const BlockWork work{
      2.0 * Tile::kRows * Tile::kColumns * pixels,
      p.narrow ? Tile::kColumns * pixels / kGatheredValues : 0.0,
      static_cast<double>(part_steps + Tile::kStages) * kStepSeconds,
      2.0 * read * pixels};
  const double rows = second * static_cast<double>(p.pixels) * p.rows_pitch;
  const double columns = static_cast<double>(p.input_pixels) * p.channels;
  const double partial = plan.parts > 1 ? 2.0 * static_cast<double>(plan.partial_bytes()) : 0.0;
  const double blocks = static_cast<double>(plan.grid_x) * plan.grid_y * plan.parts;
  plan.cost =
      cost_of(gpu, work, blocks, plan.blocks_per_multiprocessor, 2.0 * (rows + columns) + partial);
  plan.cost.seconds += plan.parts > 1 ? kLaunchSeconds : 0.0;
  return plan;
}

template <int Work>
WeightPlan plan_weight(const Gpu& gpu, const WeightProblem& p, const Forced& forced) {
  // Enough parts that the last wave of blocks costs little.
  constexpr int64_t kMostWaves = 4;
  WeightPlan best{};
  const auto consider = [&](auto tile) {
    using Tile = decltype(tile);
    if (!allows(forced.pixel_warps, Tile::kRowWarps) || !allows(forced.columns, Tile::kColumns)) {
      return;
    }
    const int64_t steps = ceil_div(p.pixels, Tile::kDepth);
    const int64_t most = std::max<int64_t>(1, steps / kStepsOfPart);
    for (int64_t parts = forced.parts > 0 ? forced.parts : 1; parts > 0;) {
      const WeightPlan plan = weight_with<Tile>(gpu, p, parts);
      if (plan.blocks_per_multiprocessor == 0) {
        return;
      }
      if (best.row_warps == 0 || plan.cost.seconds < best.cost.seconds) {
        best = plan;
      }
      const int64_t blocks = int64_t{plan.grid_x} * plan.grid_y * parts;
      const int64_t slots = int64_t{gpu.multiprocessors} * plan.blocks_per_multiprocessor;
      const bool enough = blocks >= kMostWaves * slots || parts >= kMostGridZ;
      parts = forced.parts > 0 || enough || parts >= most ? 0 : parts + 1 + parts / 8;
    }
  };
#define R21D_CONSIDER(kWarps, kColumns) consider(WeightTile<kWarps, kColumns, Work>{});
  R21D_WEIGHT_TILES(R21D_CONSIDER)
#undef R21D_CONSIDER
  return best;
}

// ---- a step

// What an operator that computes one of the two convolutions takes for the other one.
inline TemporalGeometry pointwise_after(const SpatialGeometry& s) {
  return {s.n, s.m, s.t, s.ho, s.wo, s.m, 1, 1, 0, s.t};
}

inline SpatialGeometry pointwise_before(const TemporalGeometry& t) {
  return {t.n, t.m, t.t, t.ho, t.wo, t.m, 1, 1, 1, 1, 0, 0, t.ho, t.wo};
}

struct TrainingPlan {
  std::string refusal;  // why it cannot run; empty: it can, and the rest is set
  TrainingConvPlan spatial_forward, temporal_forward, temporal_gradient, spatial_gradient;
  WeightPlan temporal_weight, spatial_weight;

  double seconds() const {
    return spatial_forward.cost.seconds + temporal_forward.cost.seconds +
           temporal_gradient.cost.seconds + spatial_gradient.cost.seconds +
           temporal_weight.cost.seconds + spatial_weight.cost.seconds;
  }
};

// Why the kernels' 32-bit indices do not reach all of a training step; empty: they do.
inline std::string training_too_large(const SpatialGeometry& s, const TemporalGeometry& t) {
  const std::string forward = too_large(s, t);
  if (!forward.empty()) {
    return forward;
  }
  for (const auto& [what, channels] :
       {std::pair{"x", s.c}, std::pair{"u", s.m}, std::pair{"y", t.o}}) {
    if (channels > kMostSummed) {
      return std::string(what) + " has " + std::to_string(channels) + " channels; at most " +
             std::to_string(kMostSummed) + " are served in training";
    }
  }
  constexpr double kMost = 2147483647.0;
  const TrainingConv gradients[] = {temporal_gradient_conv(s, t), spatial_gradient_conv(s)};
  for (const TrainingConv& conv : gradients) {
    if (conv.phases() > kMostGridZ) {
      return "strides of " + std::to_string(conv.stride_rows) + " and " +
             std::to_string(conv.stride_cols) + " make " + std::to_string(conv.phases()) +
             " phases; at most " + std::to_string(kMostGridZ) + " are served";
    }
    const ConvProblem& p = conv.problem;
    const double rows = static_cast<double>(p.images) * static_cast<double>(p.rows) +
                        static_cast<double>(p.out_rows + p.padding_rows + p.kernel_rows);
    const double reach = (rows + 1.0) * static_cast<double>(p.cols) +
                         static_cast<double>(p.out_cols + p.padding_cols + p.kernel_cols);
    if (reach > kMost) {
      return "the gradient has " + number(reach) + " pixels with its padding; at most " +
             number(kMost) + " are served";
    }
    const double depth = static_cast<double>(p.kernel_rows) * static_cast<double>(p.kernel_cols) *
                         static_cast<double>(p.channels);
    if (depth > kMost - 256.0) {
      return "a weight has " + number(depth) + " values for an input channel; at most " +
             number(kMost - 256.0) + " are served";
    }
  }
  return "";
}

inline TrainingPlan plan_training(
    const Gpu& gpu,
    const SpatialGeometry& s,
    const TemporalGeometry& t,
    const ForcedPlan& forced = {}) {
  TrainingPlan plan{};
  plan.refusal = training_too_large(s, t);
  if (!plan.refusal.empty()) {
    return plan;
  }
  plan.spatial_forward =
      plan_training_conv<kForward>(gpu, spatial_forward_conv(s), forced.spatial_forward);
  plan.temporal_forward =
      plan_training_conv<kNormForward>(gpu, temporal_forward_conv(s, t), forced.temporal_forward);
  plan.temporal_gradient =
      plan_training_conv<kGradient>(gpu, temporal_gradient_conv(s, t), forced.temporal_gradient);
  plan.spatial_gradient =
      plan_training_conv<kNormGradient>(gpu, spatial_gradient_conv(s), forced.spatial_gradient);
  plan.temporal_weight =
      plan_weight<kNormColumns>(gpu, temporal_weight_problem(s, t), forced.temporal_weight);
  plan.spatial_weight =
      plan_weight<kNormRows>(gpu, spatial_weight_problem(s), forced.spatial_weight);
  const bool runs = plan.spatial_forward.pixel_warps > 0 && plan.temporal_forward.pixel_warps > 0 &&
                    plan.temporal_gradient.pixel_warps > 0 &&
                    plan.spatial_gradient.pixel_warps > 0 && plan.temporal_weight.row_warps > 0 &&
                    plan.spatial_weight.row_warps > 0;
  if (!runs) {
    plan.refusal = "no tile of a training kernel is what was forced and fits the GPU";
  }
  return plan;
}

}  // namespace r21d::cuda
