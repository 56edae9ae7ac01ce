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

Scratch::Scratch(int64_t workers, int64_t bytes, const Tensor& like)
    : bytes_(aligned_bytes(bytes)),
      storage_(empty_like_device({workers * bytes_ + 64}, ScalarType::Byte, like)) {
  const auto address = reinterpret_cast<uintptr_t>(storage_.mutable_data_ptr());
  base_ = reinterpret_cast<char*>((address + 63) / 64 * 64);
}

}  // namespace r21d::cpu
