// conv2plus1d: the whole operator in one pass. v exists only in a worker's ring of kt frames.
#include <string>

#include "cpu/stages.h"

namespace r21d::cpu {
namespace {

struct Buffers {
  uint32_t* band;
  uint32_t* ring;
  float* sums;   // one block of channels of a tile
  float* slice;  // sums of all output frames, where M is cut into slices
};

struct Fused {
  const SpatialStage& spatial;
  const TemporalStage& temporal;
  const Plan& plan;
  const float* scale;
  const float* shift;
  Epilogue epilogue;
  const void* x;
  void* y;

  int64_t clip_frame(int64_t clip, int64_t frame) const {
    const SpatialGeometry& g = spatial.g;
    return (clip * g.t + frame) * g.h * g.w * g.c;
  }

  // Frame `frame` of v, one slice of M, into the ring.
  void intermediate(
      int64_t clip,
      int64_t frame,
      const TileRect& rect,
      int64_t first_block,
      int64_t end_block,
      const Ring& ring,
      const Buffers& buffers) const {
    const int unit_channels = spatial.isa.unit_channels(spatial.dtype);
    const int64_t first_channel = spatial.blocks[first_block].first;
    spatial.load_band(at(x, spatial.dtype, clip_frame(clip, frame)), rect, buffers.band);
    for (int64_t i = first_block; i < end_block; ++i) {
      const Block block = spatial.blocks[i];
      spatial.multiply(block, rect, buffers.band, buffers.sums);
      uint32_t* v = ring.slot(frame) + (block.first - first_channel) / unit_channels;
      for (int64_t p = 0; p < rect.pixels(); ++p) {
        spatial.isa.norm_relu_units(
            unit_channels,
            buffers.sums + p * block.vectors * spatial.isa.lanes,
            scale + block.first,
            shift + block.first,
            block.channels,
            v + p * ring.pixel_units);
      }
    }
  }

  // Output frame `frame` of the tile from the ring: added to the slice's sums, or stored.
  void output(
      int64_t clip,
      int64_t frame,
      const TileRect& rect,
      const Ring& ring,
      int64_t first_unit,
      bool first_slice,
      bool last_slice,
      float* slice_sums,
      const Buffers& buffers) const {
    for (int64_t i = 0; i < temporal.blocks.count(); ++i) {
      const Block block = temporal.blocks[i];
      float* c = slice_sums == nullptr ? buffers.sums : slice_sums + block.first * rect.pixels();
      temporal.multiply(
          frame, block, ring, first_unit, ring.pixel_units, rect.pixels(), c, !first_slice);
      if (last_slice) {
        store(clip, frame, rect, block, c);
      }
    }
  }

  void store(
      int64_t clip, int64_t frame, const TileRect& rect, const Block& block, const float* c) const {
    const TemporalGeometry& g = temporal.g;
    const int64_t width = int64_t{block.vectors} * temporal.isa.lanes;
    for (int64_t p = 0; p < rect.pixels(); ++p, c += width) {
      const int64_t row = rect.y + p / rect.width;
      const int64_t column = rect.x + p % rect.width;
      const int64_t pixel = ((clip * g.to + frame) * g.ho + row) * g.wo + column;
      const int64_t index = pixel * g.o + block.first;
      Epilogue e = epilogue;
      e.scale = e.scale == nullptr ? nullptr : e.scale + block.first;
      e.shift = e.shift == nullptr ? nullptr : e.shift + block.first;
      e.residual = e.residual == nullptr ? nullptr : at(e.residual, temporal.dtype, index);
      temporal.isa.store(temporal.dtype, c, block.channels, e, at(y, temporal.dtype, index));
    }
  }

  // All frames of one work item: a tile of one clip, output frames [begin, end).
  void tile(int64_t clip, const TileRect& rect, int64_t begin, int64_t end, const Buffers& buffers)
      const {
    const TemporalGeometry& g = temporal.g;
    const int unit_channels = spatial.isa.unit_channels(spatial.dtype);
    const int64_t blocks = spatial.blocks.count();
    for (int64_t first = 0; first < blocks; first += plan.slice_blocks) {
      const int64_t last = first + plan.slice_blocks < blocks ? first + plan.slice_blocks : blocks;
      const int64_t channel = spatial.blocks[first].first;
      const int64_t end_channel = last < blocks ? spatial.blocks[last].first : g.m;
      const Ring ring{
          buffers.ring, g.window(), rect.pixels(), ceil_div(end_channel - channel, unit_channels)};
      int64_t made = g.first_frame(begin);
      for (int64_t frame = begin; frame < end; ++frame) {
        // A stride longer than the kernel leaves frames that no output sees.
        made = made < g.first_frame(frame) ? g.first_frame(frame) : made;
        for (; made < g.end_frame(frame); ++made) {
          intermediate(clip, made, rect, first, last, ring, buffers);
        }
        const bool sliced = plan.slice_blocks < blocks;
        float* sums =
            sliced ? buffers.slice + (frame - begin) * temporal.blocks.padded() * rect.pixels()
                   : nullptr;
        output(
            clip,
            frame,
            rect,
            ring,
            channel / unit_channels,
            first == 0,
            last == blocks,
            sums,
            buffers);
      }
    }
  }
};

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
  STD_TORCH_CHECK(
      kernels.empty() || kernels == "fused",
      "the CPU has one way, kernels='' or 'fused', not '",
      kernels,
      "'");
  STD_TORCH_CHECK(
      force.empty(), "nothing of the CPU's plan can be forced, got force='", force, "'");
  const Dtype dtype = dtype_of(x, "x");
  const Isa& table = isa();
  const SpatialGeometry s = spatial_geometry(x, spatial_weight, stride, padding);
  const TemporalGeometry t =
      temporal_geometry(s.n, s.t, s.ho, s.wo, temporal_weight, stride, padding);
  STD_TORCH_CHECK(t.m == s.m, "spatial_weight and temporal_weight differ in mid channels");
  check_dtype(temporal_weight, x.scalar_type(), "temporal_weight");
  const Epilogue epilogue{
      vector_data(out_scale, t.o, "out_scale"),
      vector_data(out_shift, t.o, "out_shift"),
      residual.has_value() ? residual->const_data_ptr() : nullptr,
      relu};
  Tensor y = inference_output(x, t, residual);
  if (s.n == 0) {
    return y;
  }
  const Machine m = machine(table, dtype);
  const Plan plan = plan_fused(m, s, t);
  const SpatialStage spatial{
      table,
      dtype,
      s,
      plan.tile,
      Blocks(s.m, table.lanes),
      pack_spatial(spatial_weight, table, dtype)};
  const TemporalStage temporal{
      table,
      dtype,
      t,
      Blocks(t.o, table.lanes),
      pack_temporal(temporal_weight, table, dtype, plan.slice_blocks)};
  const Fused fused{
      spatial,
      temporal,
      plan,
      vector_data(scale, s.m, "scale"),
      vector_data(shift, s.m, "shift"),
      epilogue,
      x.const_data_ptr(),
      y.mutable_data_ptr()};

  const int64_t pixels = plan.tile.pixels();
  const int64_t step = kMaxVectors * table.lanes;
  const int64_t blocks = spatial.blocks.count();
  const bool sliced = plan.slice_blocks < blocks;
  const int64_t held = sliced ? plan.slice_blocks * step : s.m;
  const int64_t band_bytes = aligned_bytes(spatial.band().units() * 4);
  const int64_t ring_bytes = aligned_bytes(t.window() * pixels * unit_bytes(held, m.unit_channels));
  const int64_t sum_bytes = aligned_bytes(sums_bytes(m, plan.tile));
  const int64_t slice_bytes =
      sliced ? plan.chunk_frames * temporal.blocks.padded() * pixels * 4 : 0;
  const int64_t items = s.n * plan.chunks * plan.tile.count();
  const int64_t workers = m.threads < items ? m.threads : items;
  const Scratch scratch(workers, band_bytes + ring_bytes + sum_bytes + slice_bytes, x);
  for_each_item(items, workers, [&](int64_t worker, int64_t item) {
    char* base = scratch.worker(worker);
    const Buffers buffers{
        reinterpret_cast<uint32_t*>(base),
        reinterpret_cast<uint32_t*>(base + band_bytes),
        reinterpret_cast<float*>(base + band_bytes + ring_bytes),
        reinterpret_cast<float*>(base + band_bytes + ring_bytes + sum_bytes)};
    const int64_t index = item % plan.tile.count();
    const int64_t chunk = item / plan.tile.count() % plan.chunks;
    const int64_t clip = item / plan.tile.count() / plan.chunks;
    const int64_t begin = chunk * plan.chunk_frames;
    const int64_t end = begin + plan.chunk_frames < t.to ? begin + plan.chunk_frames : t.to;
    fused.tile(clip, tile_rect(plan.tile, s.ho, s.wo, index), begin, end, buffers);
  });
  return y;
}

}  // namespace
}  // namespace r21d::cpu

STABLE_TORCH_LIBRARY_IMPL(r21d, CPU, m) {
  m.impl("conv2plus1d", TORCH_BOX(&r21d::cpu::conv2plus1d));
}
