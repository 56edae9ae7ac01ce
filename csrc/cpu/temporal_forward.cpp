// temporal_forward: y = temporal(relu(u * scale + shift)); v exists only in a worker's ring.
#include "cpu/stages.h"

namespace r21d::cpu {
namespace {

struct Temporal {
  const TemporalStage& stage;
  const float* scale;
  const float* shift;
  const void* u;
  void* y;

  // All frames of `pixels` pixels from `pixel` on, of one clip.
  void tile(int64_t clip, int64_t pixel, int64_t pixels, uint32_t* slots, float* sums) const {
    const TemporalGeometry& g = stage.g;
    const int unit_channels = stage.isa.unit_channels(stage.dtype);
    const int64_t image = g.ho * g.wo;
    const Ring ring{slots, g.window(), pixels, ceil_div(g.m, unit_channels)};
    int64_t made = 0;
    for (int64_t frame = 0; frame < g.to; ++frame) {
      // A stride longer than the kernel leaves frames that no output sees.
      made = made < g.first_frame(frame) ? g.first_frame(frame) : made;
      for (; made < g.end_frame(frame); ++made) {
        const int64_t first = (clip * g.t + made) * image + pixel;
        for (int64_t p = 0; p < pixels; ++p) {
          stage.isa.norm_relu_load(
              stage.dtype,
              unit_channels,
              at(u, stage.dtype, (first + p) * g.m),
              scale,
              shift,
              g.m,
              ring.slot(made) + p * ring.pixel_units);
        }
      }
      const int64_t first = (clip * g.to + frame) * image + pixel;
      for (int64_t i = 0; i < stage.blocks.count(); ++i) {
        const Block block = stage.blocks[i];
        const int64_t width = int64_t{block.vectors} * stage.isa.lanes;
        stage.multiply(frame, block, ring, 0, ring.pixel_units, pixels, sums, false);
        for (int64_t p = 0; p < pixels; ++p) {
          void* out = at(y, stage.dtype, (first + p) * g.o + block.first);
          stage.isa.store(stage.dtype, sums + p * width, block.channels, Epilogue{}, out);
        }
      }
    }
  }
};

Tensor temporal_forward(
    const Tensor& u,
    const Tensor& scale,
    const Tensor& shift,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding) {
  const Dtype dtype = dtype_of(u, "u");
  const Isa& table = isa();
  check_ndhwc(u, "u");
  check_dtype(weight, u.scalar_type(), "temporal_weight");
  const TemporalGeometry g =
      temporal_geometry(u.size(0), u.size(2), u.size(3), u.size(4), weight, stride, padding);
  STD_TORCH_CHECK(u.size(1) == g.m, "u and temporal_weight differ in mid channels");
  Tensor y = empty_ndhwc({g.n, g.o, g.to, g.ho, g.wo}, u);
  if (g.n == 0) {
    return y;
  }
  const Machine m = machine(table, dtype);
  const Tile tile = plan_temporal(m, g);
  const int64_t blocks = Blocks(g.m, table.lanes).count();
  const TemporalStage stage{
      table, dtype, g, Blocks(g.o, table.lanes), pack_temporal(weight, table, dtype, blocks)};
  const Temporal temporal{
      stage,
      vector_data(scale, g.m, "scale"),
      vector_data(shift, g.m, "shift"),
      u.const_data_ptr(),
      y.mutable_data_ptr()};

  const Runs runs(g.ho * g.wo, tile.pixels());
  const int64_t items = g.n * runs.size();
  const int64_t workers = m.threads < items ? m.threads : items;
  const int64_t ring_bytes =
      aligned_bytes(g.window() * tile.pixels() * unit_bytes(g.m, m.unit_channels));
  const Scratch scratch(workers, ring_bytes + sums_bytes(m, tile), u);
  for_each_item(items, workers, [&](int64_t worker, int64_t item) {
    char* base = scratch.worker(worker);
    const int64_t run = item % runs.size();
    temporal.tile(
        item / runs.size(),
        runs.begin(run),
        runs.begin(run + 1) - runs.begin(run),
        reinterpret_cast<uint32_t*>(base),
        reinterpret_cast<float*>(base + ring_bytes));
  });
  return y;
}

}  // namespace
}  // namespace r21d::cpu

STABLE_TORCH_LIBRARY_IMPL(r21d, CPU, m) {
  m.impl("temporal_forward", TORCH_BOX(&r21d::cpu::temporal_forward));
}
