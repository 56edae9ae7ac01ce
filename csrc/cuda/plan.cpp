// cuda_plan: the planner's answer as JSON, on any machine.
#include <sstream>
#include <string>

#include "cuda/force.h"
#include "cuda/training_planner.h"
#include "torch_compat.h"

namespace r21d::cuda {
namespace {

// {"name": value, ...}; a member that is an object is given as text.
class Object {
 public:
  Object& text(const char* name, const std::string& value) {
    return put(name, '"' + value + '"');
  }
  // null where there is nothing to say.
  Object& reason(const char* name, const std::string& value) {
    return value.empty() ? put(name, "null") : text(name, value);
  }
  Object& flag(const char* name, bool value) {
    return put(name, value ? "true" : "false");
  }
  Object& number(const char* name, double value) {
    std::ostringstream digits;
    digits.precision(17);
    digits << value;
    return put(name, digits.str());
  }
  Object& put(const char* name, const std::string& value) {
    members_ += std::string(members_.empty() ? "" : ", ") + '"' + name + "\": " + value;
    return *this;
  }
  std::string json() const {
    return '{' + members_ + '}';
  }

 private:
  std::string members_;
};

void put_cost(Object& object, const Cost& cost) {
  object.number("flops", cost.flops)
      .number("bytes", cost.bytes)
      .number("l2_bytes", cost.l2_bytes)
      .number("seconds", cost.seconds);
}

template <class AnyPlan>
void put_block(Object& object, const AnyPlan& plan) {
  object.number("threads", plan.threads)
      .number("stages", plan.stages)
      .number("shared_bytes", plan.shared_bytes)
      .number("registers", plan.registers)
      .number("blocks_per_multiprocessor", plan.blocks_per_multiprocessor);
}

std::string json_of(const ConvPlan& plan) {
  Object object;
  object.number("pixel_warps", plan.pixel_warps)
      .number("pixels", kWarpPixels * plan.pixel_warps)
      .number("columns", plan.columns)
      .number("depth", plan.depth)
      .number("grid_x", plan.grid_x)
      .number("grid_y", plan.grid_y);
  put_block(object, plan);
  put_cost(object, plan.cost);
  return object.json();
}

std::string json_of(const FusedPlan& plan) {
  Object object;
  object.reason("refusal", plan.refusal);
  if (!plan.refusal.empty()) {
    return object.json();
  }
  object.number("pixel_warps", plan.pixel_warps)
      .number("pixels", kWarpPixels * plan.pixel_warps)
      .number("mids", plan.mids)
      .number("slices", plan.slices)
      .number("live", plan.live)
      .number("bands", plan.bands)
      .number("band_bytes", plan.band_bytes)
      .number("raw_bytes", plan.raw_bytes)
      .number("band_rows", plan.band_rows)
      .number("band_cols", plan.band_cols)
      .number("band_channels", plan.band_channels)
      .number("depth", plan.depth)
      .number("tiles", plan.tiles)
      .number("chunk", plan.chunk)
      .number("chunks", plan.chunks)
      .number("column_tiles", plan.column_tiles)
      .number("grid_x", plan.grid_x)
      .number("grid_y", plan.grid_y)
      .number("grid_z", plan.grid_z);
  put_block(object, plan);
  put_cost(object, plan.cost);
  return object.json();
}

std::string json_of(const TrainingConvPlan& plan) {
  Object object;
  object.number("pixel_warps", plan.pixel_warps)
      .number("pixels", kWarpPixels * plan.pixel_warps)
      .number("columns", plan.columns)
      .number("phases", plan.phases)
      .number("parts", plan.parts)
      .number("grid_x", plan.grid_x)
      .number("grid_y", plan.grid_y)
      .number("grid_z", plan.phases * plan.parts);
  put_block(object, plan);
  put_cost(object, plan.cost);
  return object.json();
}

std::string json_of(const WeightPlan& plan) {
  Object object;
  object.number("pixel_warps", plan.row_warps)
      .number("rows", plan.rows)
      .number("columns", plan.columns)
      .number("parts", plan.parts)
      .number("part_pixels", plan.part_pixels)
      .number("grid_x", plan.grid_x)
      .number("grid_y", plan.grid_y)
      .number("grid_z", plan.parts);
  put_block(object, plan);
  put_cost(object, plan.cost);
  return object.json();
}

std::string json_of(const TrainingPlan& plan) {
  Object object;
  object.reason("refusal", plan.refusal);
  if (!plan.refusal.empty()) {
    return object.json();
  }
  object.put("spatial_forward", json_of(plan.spatial_forward))
      .put("temporal_forward", json_of(plan.temporal_forward))
      .put("temporal_gradient", json_of(plan.temporal_gradient))
      .put("temporal_weight", json_of(plan.temporal_weight))
      .put("spatial_gradient", json_of(plan.spatial_gradient))
      .put("spatial_weight", json_of(plan.spatial_weight))
      .number("seconds", plan.seconds());
  return object.json();
}

std::string tiles_json() {
  std::string conv;
  std::string fused;
#define R21D_LIST(...) conv += std::string(conv.empty() ? "" : ", ") + "[" #__VA_ARGS__ "]";
  R21D_CONV_TILES(R21D_LIST)
#undef R21D_LIST
#define R21D_LIST(...) fused += std::string(fused.empty() ? "" : ", ") + "[" #__VA_ARGS__ "]";
  R21D_FUSED_TILES(R21D_LIST)
#undef R21D_LIST
  std::string training;
  std::string weight;
#define R21D_LIST(...) training += std::string(training.empty() ? "" : ", ") + "[" #__VA_ARGS__ "]";
  R21D_TRAINING_TILES(R21D_LIST)
#undef R21D_LIST
#define R21D_LIST(...) weight += std::string(weight.empty() ? "" : ", ") + "[" #__VA_ARGS__ "]";
  R21D_WEIGHT_TILES(R21D_LIST)
#undef R21D_LIST
  return "{\"conv\": [" + conv + "], \"fused\": [" + fused + "], \"training\": [" + training +
         "], \"weight\": [" + weight + "]}";
}

std::string json_of(const Plan& plan, const TrainingPlan& training) {
  Object object;
  object.reason("refusal", plan.refusal).put("tiles", tiles_json());
  object.number("product_share", kProductShare);
  if (!plan.refusal.empty()) {
    return object.json();
  }
  object.text("kernels", plan.prefers_fused ? "fused" : "two")
      .number("two_seconds", plan.two_seconds)
      .flag("narrow", plan.narrow)
      .flag("packs_x", plan.packs_x)
      .number("channels", plan.channels)
      .number("mid_pitch", plan.mid_pitch)
      .number("pack_seconds", plan.pack_seconds)
      .put("spatial", json_of(plan.spatial))
      .put("temporal", json_of(plan.temporal))
      .put("fused", json_of(plan.fused))
      .put("training", json_of(training));
  if (plan.fused.refusal.empty()) {
    object.number("fused_seconds", plan.fused_seconds);
  } else {
    object.put("fused_seconds", "null");
  }
  return object.json();
}

void check_values(const Ints& values, size_t count, int64_t least, const char* name) {
  STD_TORCH_CHECK(values.size() == count, name, " must hold ", count, " values");
  for (const int64_t value : values) {
    STD_TORCH_CHECK(value >= least, name, " must be at least ", least, ", got ", value);
  }
}

std::string cuda_plan(
    const Ints& sizes,
    const Ints& kernel,
    const Ints& stride,
    const Ints& padding,
    const Ints& gpu,
    const std::string& force) {
  check_values(sizes, 7, 0, "sizes");
  check_values(kernel, 3, 1, "kernel");
  check_values(stride, 3, 1, "stride");
  check_values(padding, 3, 0, "padding");
  check_values(gpu, 5, 1, "gpu");
  const auto [s, t] = make_geometry(sizes, kernel, stride, padding);
  STD_TORCH_CHECK(
      s.c > 0 && s.t > 0 && s.m > 0 && t.o > 0 && s.ho > 0 && s.wo > 0 && t.to > 0,
      "the problem has an empty axis or output");
  const Gpu device{
      static_cast<int>(gpu[0]),
      static_cast<int>(gpu[1]),
      static_cast<int>(gpu[2]),
      static_cast<double>(gpu[3]) * 1e9,
      static_cast<double>(gpu[4]) * 1e9};
  const ForcedPlan forced = parse_force(force);
  return json_of(plan(device, s, t, forced), plan_training(device, s, t, forced));
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CompositeExplicitAutograd, m) {
  m.impl("cuda_plan", TORCH_BOX(&r21d::cuda::cuda_plan));
}
