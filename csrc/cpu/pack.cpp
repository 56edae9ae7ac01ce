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

// What one gemm panel is packed from and where to: [tap][unit][lane] at `dest`, for one block of
// outputs and the inputs `ins`.
struct Panel {
  Block block;
  Range ins;
  uint32_t* dest;
};

// Units that one item packs, and taps that it handles at a time.
struct Run {
  int64_t units, taps;
};

Run run_of(const Source& source, int unit_channels) {
  const int64_t taps = static_cast<int64_t>(source.taps.size());
  const int64_t most = kRun / unit_channels;
  const int64_t tap_run = taps < most ? taps : most;
  return {most / tap_run, tap_run};
}

// Packs units [first, end) of a panel, `kChannels` inputs a unit; `put(low, high)` makes a unit,
// `high` being zero where there is no second channel.
template <class Element, int kChannels, class Put>
void pack_units(const Source& source, const Panel& panel, int lanes, const Range& which, Put put) {
  const Block& block = panel.block;
  const auto* weights = static_cast<const Element*>(source.data) + block.first * source.out_stride;
  const int64_t width = int64_t{block.vectors} * lanes;
  const int64_t taps = static_cast<int64_t>(source.taps.size());
  const int64_t units = ceil_div(panel.ins.size(), kChannels);
  const int64_t in = panel.ins.begin + which.begin * kChannels;
  const int64_t tap_run = run_of(source, kChannels).taps;
  Element rows[kMaxWidth][kRun];
  for (int64_t lane = block.channels; lane < width; ++lane) {
    std::memset(rows[lane], 0, sizeof rows[lane]);
  }
  for (int64_t tap = 0; tap < taps; tap += tap_run) {
    const int64_t here = tap + tap_run < taps ? tap_run : taps - tap;
    for (int64_t lane = 0; lane < block.channels; ++lane) {
      const Element* out = weights + lane * source.out_stride;
      copy_row(source, out, in, which.size() * kChannels, panel.ins.end, tap, here, rows[lane]);
    }
    for (int64_t j = 0; j < here; ++j) {
      for (int64_t u = which.begin; u < which.end; ++u) {
        uint32_t* row = panel.dest + ((tap + j) * units + u) * width;
        const int64_t low = (u - which.begin) * kChannels * here + j;
        const int64_t high = low + (kChannels - 1) * here;
        for (int64_t lane = 0; lane < width; ++lane) {
          row[lane] = put(rows[lane][low], rows[lane][high]);
        }
      }
    }
  }
}

void pack_units(
    const Source& source, const Panel& panel, const Isa& isa, Dtype dtype, const Range& which) {
  if (dtype == Dtype::kFloat32) {
    const auto put = [](uint32_t bits, uint32_t) { return bits; };
    pack_units<uint32_t, 1>(source, panel, isa.lanes, which, put);
  } else if (isa.unit_channels(dtype) == 1) {
    const auto put = [](uint16_t bits, uint16_t) { return uint32_t{bits} << 16; };
    pack_units<uint16_t, 1>(source, panel, isa.lanes, which, put);
  } else {
    const auto put = [](uint16_t low, uint16_t high) { return low | (uint32_t{high} << 16); };
    pack_units<uint16_t, 2>(source, panel, isa.lanes, which, put);
  }
}

// Packs all panels; an item is one run of units of one panel, so that few panels keep all threads
// busy.
void pack_panels(
    const Source& source, const std::vector<Panel>& panels, const Isa& isa, Dtype dtype) {
  const int unit_channels = isa.unit_channels(dtype);
  const int64_t run = run_of(source, unit_channels).units;
  int64_t most = 0;
  for (const Panel& panel : panels) {
    const int64_t units = ceil_div(panel.ins.size(), unit_channels);
    most = units > most ? units : most;
  }
  const int64_t runs = ceil_div(most, run);
  const int64_t items = static_cast<int64_t>(panels.size()) * runs;
  const int64_t threads = torch::stable::get_num_threads();
  for_each_item(items, threads < items ? threads : items, [&](int64_t, int64_t item) {
    const Panel& panel = panels[static_cast<size_t>(item / runs)];
    const int64_t units = ceil_div(panel.ins.size(), unit_channels);
    const int64_t begin = item % runs * run;
    const int64_t end = begin + run < units ? begin + run : units;
    if (begin < end) {
      pack_units(source, panel, isa, dtype, Range{begin, end});
    }
  });
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
  std::vector<Panel> panels;
  for (int64_t i = 0; i < blocks.count(); ++i) {
    const Block block = blocks[i];
    panels.push_back({block, {0, channels}, data + block.first * kh * kw * units});
  }
  pack_panels(source, panels, isa, dtype);
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
  std::vector<Panel> panels;
  for (int64_t first = 0; first < mids.count(); first += slice_blocks) {
    const int64_t last = first + slice_blocks;
    const int64_t begin = mids[first].first;
    const int64_t end = last < mids.count() ? mids[last].first : weight.size(1);
    const int64_t slice_units = ceil_div(end - begin, unit_channels);
    for (int64_t i = 0; i < outs.count(); ++i) {
      const Block out = outs[i];
      const int64_t offset = packed.offset(begin / unit_channels, slice_units, out);
      panels.push_back({out, {begin, end}, data + offset});
    }
  }
  pack_panels(source, panels, isa, dtype);
  return packed;
}

}  // namespace r21d::cpu
