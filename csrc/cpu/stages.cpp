#include "cpu/stages.h"

#include <cstring>

namespace r21d::cpu {
namespace {

// Units that one gemm call adds up in a chain, so that its rounding error stays that of a short
// sum; at three vectors of AVX-512 their weights take 54 KB, about an L1.
constexpr int64_t kMaxChain = 288;

// Rows are joined in one chain up to this length: shorter in float32, whose rounding error shows in
// the result, than in bfloat16, where the kernel rows of conv2_x (3 x 96 units) make one chain.
int64_t joined_chain(int unit_channels) {
  return unit_channels == 2 ? kMaxChain : 160;
}

// A part of a reduction over rows of units: several rows whole, or a run of units of one row.
struct Chain {
  int64_t row, rows, unit, units;
};

// Cuts the reduction into chains and runs body(chain) on each, in order.
template <class Body>
void for_each_chain(int64_t rows, int64_t units, int unit_channels, const Body& body) {
  if (units > kMaxChain) {
    const Runs runs(units, kMaxChain);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < runs.size(); ++i) {
        body(Chain{row, 1, runs.begin(i), runs.begin(i + 1) - runs.begin(i)});
      }
    }
    return;
  }
  const int64_t joined = joined_chain(unit_channels) / units;
  const int64_t fit = joined < 1 ? 1 : (joined < kMaxRows ? joined : kMaxRows);
  for (int64_t row = 0; row < rows; row += fit) {
    body(Chain{row, row + fit < rows ? fit : rows - row, 0, units});
  }
}

void (*gemm_of(const Isa& isa, Dtype dtype))(const Gemm&) {
  return isa.unit_channels(dtype) == 2 ? isa.gemm_bfloat16 : isa.gemm_float32;
}

}  // namespace

TileRect tile_rect(const Tile& tile, int64_t ho, int64_t wo, int64_t index) {
  const Runs rows(ho, tile.height);
  const Runs columns(wo, tile.width);
  const int64_t row = index / tile.columns;
  const int64_t column = index % tile.columns;
  const int64_t y = rows.begin(row);
  const int64_t x = columns.begin(column);
  return {y, x, rows.begin(row + 1) - y, columns.begin(column + 1) - x};
}

void SpatialStage::load_band(const void* x, const TileRect& rect, uint32_t* band) const {
  const int64_t rows = (rect.height - 1) * g.sh + g.kh;
  const int64_t columns = (rect.width - 1) * g.sw + g.kw;
  const int64_t units = ceil_div(g.c, isa.unit_channels(dtype));
  const int64_t top = rect.y * g.sh - g.ph;
  const int64_t left = rect.x * g.sw - g.pw;
  // Columns [begin, end) of the band lie inside the image; padding is zero before the convolution.
  int64_t begin = left < 0 ? -left : 0;
  int64_t end = left + columns > g.w ? g.w - left : columns;
  begin = begin < columns ? begin : columns;
  end = end > begin ? end : begin;
  const int64_t row_units = columns * units;
  for (int64_t row = 0; row < rows; ++row, band += row_units) {
    const int64_t y = top + row;
    if (y < 0 || y >= g.h || begin == end) {
      std::memset(band, 0, static_cast<size_t>(row_units) * sizeof(uint32_t));
      continue;
    }
    std::memset(band, 0, static_cast<size_t>(begin * units) * sizeof(uint32_t));
    const void* source = at(x, dtype, (y * g.w + left + begin) * g.c);
    isa.load_units(dtype, source, end - begin, g.c, band + begin * units);
    std::memset(
        band + end * units, 0, static_cast<size_t>((columns - end) * units) * sizeof(uint32_t));
  }
}

void SpatialStage::multiply(
    const Block& block, const TileRect& rect, const uint32_t* band, float* c) const {
  const int64_t units = ceil_div(g.c, isa.unit_channels(dtype));
  const int64_t row_units = ((rect.width - 1) * g.sw + g.kw) * units;
  const int64_t width = int64_t{block.vectors} * isa.lanes;
  const Runs runs(rect.width, isa.max_pixels);
  Gemm gemm{};
  gemm.vectors = block.vectors;
  gemm.a_pixel_stride = g.sw * units;
  const uint32_t* panel = weights.block(block, g.kh);
  const auto multiply = gemm_of(isa, dtype);
  // One chain at a time: its weights stay in L1 for all pixels of the tile.
  for_each_chain(g.kh, weights.row_units, isa.unit_channels(dtype), [&](const Chain& chain) {
    const uint32_t* kernel_rows[kMaxRows];
    gemm.rows = static_cast<int>(chain.rows);
    gemm.units = chain.units;
    gemm.a = kernel_rows;
    gemm.b = panel + (chain.row * weights.row_units + chain.unit) * width;
    gemm.accumulate = chain.row > 0 || chain.unit > 0;
    for (int64_t y = 0; y < rect.height; ++y) {
      for (int64_t i = 0; i < chain.rows; ++i) {
        kernel_rows[i] = band + (y * g.sh + chain.row + i) * row_units + chain.unit;
      }
      for (int64_t run = 0; run < runs.size(); ++run) {
        const int64_t x = runs.begin(run);
        gemm.pixels = static_cast<int>(runs.begin(run + 1) - x);
        gemm.a_offset = x * gemm.a_pixel_stride;
        gemm.c = c + (y * rect.width + x) * width;
        multiply(gemm);
      }
    }
  });
}

void TemporalStage::multiply(
    int64_t frame,
    const Block& block,
    const Ring& ring,
    int64_t first_unit,
    int64_t units,
    int64_t pixels,
    float* c,
    bool accumulate) const {
  const int64_t width = int64_t{block.vectors} * isa.lanes;
  const int64_t first = g.first_frame(frame);
  const int64_t end = g.end_frame(frame);
  if (first >= end && !accumulate) {
    // The output frame lies in the padding altogether.
    std::memset(c, 0, static_cast<size_t>(pixels * width) * sizeof(float));
    return;
  }
  const int64_t first_tap = first - (frame * g.st - g.pt);
  const uint32_t* panel = weights.data + weights.offset(first_unit, units, block);
  const Runs runs(pixels, isa.max_pixels);
  const auto multiply = gemm_of(isa, dtype);
  Gemm gemm{};
  gemm.vectors = block.vectors;
  gemm.a_pixel_stride = ring.pixel_units;
  for_each_chain(end - first, units, isa.unit_channels(dtype), [&](const Chain& chain) {
    const uint32_t* frames[kMaxRows];
    for (int64_t i = 0; i < chain.rows; ++i) {
      frames[i] = ring.slot(first + chain.row + i) + chain.unit;
    }
    gemm.rows = static_cast<int>(chain.rows);
    gemm.units = chain.units;
    gemm.a = frames;
    gemm.b = panel + ((first_tap + chain.row) * units + chain.unit) * width;
    gemm.accumulate = accumulate || chain.row > 0 || chain.unit > 0;
    for (int64_t run = 0; run < runs.size(); ++run) {
      const int64_t p = runs.begin(run);
      gemm.pixels = static_cast<int>(runs.begin(run + 1) - p);
      gemm.a_offset = p * ring.pixel_units;
      gemm.c = c + p * width;
      multiply(gemm);
    }
  });
}

Dtype dtype_of(const Tensor& x, const char* name) {
  if (x.scalar_type() == ScalarType::Float) {
    return Dtype::kFloat32;
  }
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, name, " must be float32 or bfloat16");
  return Dtype::kBFloat16;
}

Machine machine(const Isa& isa, Dtype dtype) {
  return {
      static_cast<int>(torch::stable::get_num_threads()),
      isa.lanes,
      isa.max_pixels,
      isa.unit_channels(dtype),
      l2_bytes()};
}

SpatialGeometry spatial_geometry(
    const Tensor& x, const Tensor& weight, const Ints& stride, const Ints& padding) {
  check_ndhwc(x, "x");
  check_dtype(weight, x.scalar_type(), "spatial_weight");
  check_triple(stride, 1, "stride");
  check_triple(padding, 0, "padding");
  STD_TORCH_CHECK(
      weight.dim() == 5 && weight.size(2) == 1, "spatial_weight must be (M, C, 1, d, d)");
  STD_TORCH_CHECK(x.size(1) == weight.size(1), "x and spatial_weight differ in channels");
  SpatialGeometry g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.t = x.size(2);
  g.h = x.size(3);
  g.w = x.size(4);
  g.m = weight.size(0);
  g.kh = weight.size(3);
  g.kw = weight.size(4);
  g.sh = stride[1];
  g.sw = stride[2];
  g.ph = padding[1];
  g.pw = padding[2];
  g.ho = output_size(g.h, g.kh, g.sh, g.ph);
  g.wo = output_size(g.w, g.kw, g.sw, g.pw);
  STD_TORCH_CHECK(
      g.c > 0 && g.t > 0 && g.m > 0 && g.kh > 0 && g.kw > 0 && g.ho > 0 && g.wo > 0,
      "the spatial convolution has an empty axis or output");
  return g;
}

TemporalGeometry temporal_geometry(
    int64_t n,
    int64_t t,
    int64_t ho,
    int64_t wo,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding) {
  check_triple(stride, 1, "stride");
  check_triple(padding, 0, "padding");
  STD_TORCH_CHECK(
      weight.dim() == 5 && weight.size(3) == 1 && weight.size(4) == 1,
      "temporal_weight must be (O, M, t, 1, 1)");
  TemporalGeometry g{};
  g.n = n;
  g.m = weight.size(1);
  g.t = t;
  g.ho = ho;
  g.wo = wo;
  g.o = weight.size(0);
  g.kt = weight.size(2);
  g.st = stride[0];
  g.pt = padding[0];
  g.to = output_size(t, g.kt, g.st, g.pt);
  STD_TORCH_CHECK(
      g.m > 0 && g.o > 0 && g.kt > 0 && g.to > 0,
      "the temporal convolution has an empty axis or output");
  return g;
}

Scratch::Scratch(int64_t workers, int64_t bytes, const Tensor& like)
    : bytes_(aligned_bytes(bytes)),
      storage_(empty_like_device({workers * bytes_ + 64}, ScalarType::Byte, like)) {
  const auto address = reinterpret_cast<uintptr_t>(storage_.mutable_data_ptr());
  base_ = reinterpret_cast<char*>((address + 63) / 64 * 64);
}

}  // namespace r21d::cpu
