// spatial_forward: u = spatial(x), and BatchNorm's statistics of u as stored.
#include "cpu/stages.h"

#include <cstring>

namespace r21d::cpu {
namespace {

// Mean and squared deviations of one item's values, merged into the total by Chan's formula.
void merge(
    const float* mean,
    const float* m2,
    double count,
    double total,
    int64_t channels,
    double* total_mean,
    double* total_m2) {
  const double share = count / (total + count);
  for (int64_t i = 0; i < channels; ++i) {
    const double delta = mean[i] - total_mean[i];
    total_mean[i] += delta * share;
    total_m2[i] += m2[i] + delta * delta * total * share;
  }
}

struct Spatial {
  const SpatialStage& stage;
  const void* x;
  void* u;
  bool statistics;

  // One tile of frame `frame` (of all clips' frames): u, and its mean and m2 where wanted.
  void tile(
      int64_t frame, const TileRect& rect, uint32_t* band, float* sums, float* mean, float* m2)
      const {
    const SpatialGeometry& g = stage.g;
    stage.load_band(at(x, stage.dtype, frame * g.h * g.w * g.c), rect, band);
    for (int64_t i = 0; i < stage.blocks.count(); ++i) {
      const Block block = stage.blocks[i];
      stage.multiply(block, rect, band, sums);
      const int64_t width = int64_t{block.vectors} * stage.isa.lanes;
      for (int64_t p = 0; p < rect.pixels(); ++p) {
        const int64_t row = rect.y + p / rect.width;
        const int64_t column = rect.x + p % rect.width;
        void* out = at(u, stage.dtype, ((frame * g.ho + row) * g.wo + column) * g.m + block.first);
        stage.isa.store(stage.dtype, sums + p * width, block.channels, Epilogue{}, out);
        if (statistics) {
          const float share = 1.0f / static_cast<float>(p + 1);
          stage.isa.accumulate_statistics(
              stage.dtype, out, block.channels, share, mean + block.first, m2 + block.first);
        }
      }
    }
  }
};

// Statistics of each item, [item][mean, m2][channel], merged in the order of the items, so that
// the result does not depend on threads.
void reduce(
    const float* items,
    int64_t count,
    const Tile& tile,
    const SpatialGeometry& g,
    float* mean,
    float* m2) {
  std::vector<double> totals(static_cast<size_t>(2 * g.m), 0.0);
  double seen = 0.0;
  for (int64_t item = 0; item < count; ++item) {
    const TileRect rect = tile_rect(tile, g.ho, g.wo, item % tile.count());
    const double values = static_cast<double>(rect.pixels());
    const float* own = items + item * 2 * g.m;
    merge(own, own + g.m, values, seen, g.m, totals.data(), totals.data() + g.m);
    seen += values;
  }
  for (int64_t i = 0; i < g.m; ++i) {
    mean[i] = static_cast<float>(totals[static_cast<size_t>(i)]);
    m2[i] = static_cast<float>(totals[static_cast<size_t>(g.m + i)]);
  }
}

std::tuple<Tensor, Tensor, Tensor> spatial_forward(
    const Tensor& x,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding,
    bool statistics) {
  const Dtype dtype = dtype_of(x, "x");
  const Isa& table = isa();
  const SpatialGeometry g = spatial_geometry(x, weight, stride, padding);
  const Machine m = machine(table, dtype);
  const Tile tile = plan_spatial(m, g);
  const SpatialStage stage{
      table, dtype, g, tile, Blocks(g.m, table.lanes), pack_spatial(weight, table, dtype)};
  const int64_t channels = statistics ? g.m : 0;
  Tensor u = empty_ndhwc({g.n, g.m, g.t, g.ho, g.wo}, x);
  Tensor mean = empty_like_device({channels}, ScalarType::Float, x);
  Tensor m2 = empty_like_device({channels}, ScalarType::Float, x);
  const Spatial spatial{stage, x.const_data_ptr(), u.mutable_data_ptr(), statistics};

  const int64_t items = g.n * g.t * tile.count();
  const int64_t workers = m.threads < items ? m.threads : items;
  const int64_t band_bytes = aligned_bytes(stage.band().units() * 4);
  const Scratch scratch(workers, band_bytes + sums_bytes(m, tile), x);
  const Tensor partial = empty_like_device({items, 2, channels}, ScalarType::Float, x);
  auto* partials = static_cast<float*>(partial.mutable_data_ptr());
  for_each_item(items, workers, [&](int64_t worker, int64_t item) {
    char* base = scratch.worker(worker);
    float* own = partials + item * 2 * channels;
    if (statistics) {
      std::memset(own, 0, static_cast<size_t>(2 * channels) * sizeof(float));
    }
    spatial.tile(
        item / tile.count(),
        tile_rect(tile, g.ho, g.wo, item % tile.count()),
        reinterpret_cast<uint32_t*>(base),
        reinterpret_cast<float*>(base + band_bytes),
        own,
        own + channels);
  });
  if (statistics) {
    reduce(partials, items, tile, g, mean.mutable_data_ptr<float>(), m2.mutable_data_ptr<float>());
  }
  return {u, mean, m2};
}

}  // namespace
}  // namespace r21d::cpu

STABLE_TORCH_LIBRARY_IMPL(r21d, CPU, m) {
  m.impl("spatial_forward", TORCH_BOX(&r21d::cpu::spatial_forward));
}
