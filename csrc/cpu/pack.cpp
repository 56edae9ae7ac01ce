#include "cpu/pack.h"

#include <cstring>
#include <utility>

#include "geometry.h"

namespace r21d::cpu {
namespace {

// Weights of one output that are copied to the stack at a time, and outputs of a block. The copy is
// what makes the transposition fast: rows of the weights lie a multiple of the cache's set stride
// apart, and would evict each other if they were read across.
constexpr int64_t kRun = 160;
constexpr int64_t kMaxWidth = 16 * kMaxVectors;

// A weight as a table [out][in][tap], with the element strides of its storage.
struct Source {
  const void* data;
  int64_t out_stride, in_stride;
  std::vector<int64_t> taps;  // offset of each
  bool contiguous;            // [in][tap] without gaps
};

Source make_source(const Tensor& weight, std::vector<int64_t> taps) {
  bool contiguous = weight.stride(1) == static_cast<int64_t>(taps.size());
  for (size_t i = 0; i < taps.size(); ++i) {
    contiguous = contiguous && taps[i] == static_cast<int64_t>(i);
  }
  return {weight.const_data_ptr(), weight.stride(0), weight.stride(1), std::move(taps), contiguous};
}

struct Range {
  int64_t begin, end;

  int64_t size() const {
    return end - begin;
  }
};

// Inputs [in, in + channels) and taps [tap, tap + taps) of one output, as row[input][tap]; inputs
// from `end` on are zero.
template <class Element>
void copy_row(
    const Source& source,
    const Element* out,
    int64_t in,
    int64_t channels,
    int64_t end,
    int64_t tap,
    int64_t taps,
    Element* row) {
  const int64_t real = in + channels < end ? channels : end - in;
  if (source.contiguous && taps == static_cast<int64_t>(source.taps.size())) {
    std::memcpy(row, out + in * taps, static_cast<size_t>(real * taps) * sizeof(Element));
  } else {
    for (int64_t i = 0; i < real; ++i) {
      for (int64_t j = 0; j < taps; ++j) {
        row[i * taps + j] = out[(in + i) * source.in_stride + source.taps[tap + j]];
      }
    }
  }
  std::memset(
      row + real * taps, 0, static_cast<size_t>((channels - real) * taps) * sizeof(Element));
}

// Writes dest[tap][unit][lane] for one block of outputs and the inputs `ins`, `kChannels` inputs a
// unit; `put(low, high)` makes a unit, `high` being zero where there is no second channel.
template <class Element, int kChannels, class Put>
void pack_panel(
    const Source& source,
    const Block& block,
    int64_t width,
    const Range& ins,
    uint32_t* dest,
    Put put) {
  const auto* weights = static_cast<const Element*>(source.data) + block.first * source.out_stride;
  const int64_t taps = static_cast<int64_t>(source.taps.size());
  const int64_t units = ceil_div(ins.size(), kChannels);
  const int64_t tap_run = taps < kRun / kChannels ? taps : kRun / kChannels;
  const int64_t unit_run = kRun / kChannels / tap_run;
  Element rows[kMaxWidth][kRun] = {};
  for (int64_t unit = 0; unit < units; unit += unit_run) {
    const int64_t unit_end = unit + unit_run < units ? unit + unit_run : units;
    for (int64_t tap = 0; tap < taps; tap += tap_run) {
      const int64_t here = tap + tap_run < taps ? tap_run : taps - tap;
      for (int64_t lane = 0; lane < block.channels; ++lane) {
        const Element* out = weights + lane * source.out_stride;
        const int64_t in = ins.begin + unit * kChannels;
        const int64_t channels = (unit_end - unit) * kChannels;
        copy_row(source, out, in, channels, ins.end, tap, here, rows[lane]);
      }
      for (int64_t j = 0; j < here; ++j) {
        for (int64_t u = unit; u < unit_end; ++u) {
          uint32_t* row = dest + ((tap + j) * units + u) * width;
          const int64_t low = (u - unit) * kChannels * here + j;
          const int64_t high = low + (kChannels - 1) * here;
          for (int64_t lane = 0; lane < width; ++lane) {
            row[lane] = put(rows[lane][low], rows[lane][high]);
          }
        }
      }
    }
  }
}

void pack_panel(
    const Source& source,
    const Block& block,
    const Isa& isa,
    Dtype dtype,
    const Range& ins,
    uint32_t* dest) {
  const int64_t width = int64_t{block.vectors} * isa.lanes;
  if (dtype == Dtype::kFloat32) {
    const auto put = [](uint32_t bits, uint32_t) { return bits; };
    pack_panel<uint32_t, 1>(source, block, width, ins, dest, put);
  } else if (isa.unit_channels(dtype) == 1) {
    const auto put = [](uint16_t bits, uint16_t) { return uint32_t{bits} << 16; };
    pack_panel<uint16_t, 1>(source, block, width, ins, dest, put);
  } else {
    const auto put = [](uint16_t low, uint16_t high) { return low | (uint32_t{high} << 16); };
    pack_panel<uint16_t, 2>(source, block, width, ins, dest, put);
  }
}

int64_t workers_for(int64_t items) {
  const int64_t threads = torch::stable::get_num_threads();
  return threads < items ? threads : items;
}

}  // namespace

SpatialWeights pack_spatial(const Tensor& weight, const Isa& isa, Dtype dtype) {
  const int64_t channels = weight.size(1);
  const int64_t kh = weight.size(3);
  const int64_t kw = weight.size(4);
  const Blocks blocks(weight.size(0), isa.lanes);
  const int64_t units = ceil_div(channels, isa.unit_channels(dtype));
  Tensor storage = empty_like_device({blocks.padded() * kh * kw * units}, ScalarType::Int, weight);
  auto* data = static_cast<uint32_t*>(storage.mutable_data_ptr());
  std::vector<int64_t> offsets;
  for (int64_t dy = 0; dy < kh; ++dy) {
    for (int64_t dx = 0; dx < kw; ++dx) {
      offsets.push_back(dy * weight.stride(3) + dx * weight.stride(4));
    }
  }
  const Source source = make_source(weight, std::move(offsets));
  for_each_item(blocks.count(), workers_for(blocks.count()), [&](int64_t, int64_t i) {
    const Block block = blocks[i];
    uint32_t* dest = data + block.first * kh * kw * units;
    pack_panel(source, block, isa, dtype, Range{0, channels}, dest);
  });
  return {storage, data, kw * units};
}

TemporalWeights pack_temporal(
    const Tensor& weight, const Isa& isa, Dtype dtype, int64_t slice_blocks) {
  const int64_t taps = weight.size(2);
  const Blocks outs(weight.size(0), isa.lanes);
  const Blocks mids(weight.size(1), isa.lanes);
  const int unit_channels = isa.unit_channels(dtype);
  const int64_t units = ceil_div(weight.size(1), unit_channels);
  Tensor storage = empty_like_device({units * taps * outs.padded()}, ScalarType::Int, weight);
  auto* data = static_cast<uint32_t*>(storage.mutable_data_ptr());
  std::vector<int64_t> offsets;
  for (int64_t tap = 0; tap < taps; ++tap) {
    offsets.push_back(tap * weight.stride(2));
  }
  const Source source = make_source(weight, std::move(offsets));
  const TemporalWeights packed{storage, data, taps, outs.padded()};
  const int64_t slices = ceil_div(mids.count(), slice_blocks);
  const int64_t items = slices * outs.count();
  for_each_item(items, workers_for(items), [&](int64_t, int64_t item) {
    const int64_t slice = item / outs.count();
    const Block out = outs[item % outs.count()];
    const int64_t last = (slice + 1) * slice_blocks;
    const int64_t begin = mids[slice * slice_blocks].first;
    const int64_t end = last < mids.count() ? mids[last].first : weight.size(1);
    const int64_t first_unit = begin / unit_channels;
    const int64_t slice_units = ceil_div(end - begin, unit_channels);
    uint32_t* dest = data + (packed.panel(first_unit, slice_units, out) - data);
    pack_panel(source, out, isa, dtype, Range{begin, end}, dest);
  });
  return packed;
}

}  // namespace r21d::cpu
