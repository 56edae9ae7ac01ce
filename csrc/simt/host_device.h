// numpy's arrays as the tensors of a host program (cuda/program.h), its launches in the simulator.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/merge.cuh"
#include "cuda/pack.cuh"
#include "cuda/program.h"
#include "simt/launch.h"
#include "simt/options.h"

namespace r21d::simt {

namespace py = pybind11;
using Halves = py::array_t<uint16_t>;
using Rows = py::array_t<uint16_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Ints = std::vector<int64_t>;

// Bytes from the first to behind the last value.
inline size_t span(const py::array& a) {
  if (a.size() == 0) {
    return 0;
  }
  py::ssize_t bytes = a.itemsize();
  for (py::ssize_t axis = 0; axis < a.ndim(); ++axis) {
    if (a.strides(axis) < 0) {
      throw std::invalid_argument("negative strides are not served");
    }
    bytes += (a.shape(axis) - 1) * a.strides(axis);
  }
  return static_cast<size_t>(bytes);
}

// Buffers of one call and the launches that it made.
class HostDevice {
 public:
  explicit HostDevice(size_t shared_limit) : shared_limit_(shared_limit) {
  }

  void* allocate(int64_t bytes) {
    // NaN in every 16-bit format.
    std::vector<unsigned char>& held = memory_.emplace_back(static_cast<size_t>(bytes), 0xff);
    const std::string name = "scratch " + std::to_string(memory_.size());
    return buffers_.emplace_back(name, held.data(), held.size(), true).pointer<void>();
  }

  const void* input(const char* name, const py::array& a) {
    return buffers_.emplace_back(name, a.data(), span(a)).pointer<void>();
  }

  const float* vector(const char* name, const std::optional<Floats>& values) {
    return values ? static_cast<const float*>(input(name, *values)) : nullptr;
  }

  void* output(const char* name, py::array& a) {
    return buffers_.emplace_back(name, a.mutable_data(), span(a), true).pointer<void>();
  }

  void pack(const cuda::Grid& grid, const cuda::PackParams& params) {
    launch("pack", cuda::pack_kernel, grid, cuda::kPackThreads, 0, params);
  }

  void merge(const cuda::Grid& grid, const cuda::MergeParams& params) {
    launch("merge", cuda::merge_kernel, grid, cuda::kMergeThreads, 0, params);
  }

  template <class Params>
  void launch(
      const char* name,
      void (*kernel)(Params),
      const cuda::Grid& grid,
      int threads,
      int shared_bytes,
      const Params& params) {
    const ptx::Index3 blocks{
        static_cast<uint32_t>(grid.x),
        static_cast<uint32_t>(grid.y),
        static_cast<uint32_t>(grid.z)};
    launched.push_back(name);
    const Report report = simt::launch(
        {.kernel = name,
         .grid = blocks,
         .threads = threads,
         .dynamic_shared = static_cast<size_t>(shared_bytes),
         .shared_limit = shared_limit_},
        [&] { kernel(params); });
    uninitialised_reads += report.uninitialised_reads;
    if (options().traffic) {
      for (const GlobalBuffer& buffer : buffers_) {
        traffic.emplace_back(name, buffer.name(), buffer.bytes_read(), buffer.bytes_written());
      }
    }
  }

  std::vector<std::string> launched;
  // With options().traffic: kernel, buffer, bytes of it read and written, each once.
  std::vector<std::tuple<std::string, std::string, size_t, size_t>> traffic;
  uint64_t uninitialised_reads = 0;

 private:
  size_t shared_limit_;
  std::deque<std::vector<unsigned char>> memory_;
  std::deque<GlobalBuffer> buffers_;
};

inline cuda::Strided strided(HostDevice& device, const char* name, const Halves& weight) {
  cuda::Strided out{device.input(name, weight), {}};
  for (py::ssize_t axis = 0; axis < 5; ++axis) {
    out.strides[axis] = weight.strides(axis) / 2;
  }
  return out;
}

// What of a plan the kernel called `name` is forced to.
inline cuda::Forced forced(const py::dict& wanted, const char* name) {
  if (!wanted.contains(name)) {
    return {};
  }
  const py::dict values = wanted[name];
  const auto value = [&](const char* key) {
    return values.contains(key) ? values[key].cast<int>() : 0;
  };
  return {value("pixel_warps"), value("columns"), value("bands"), value("chunk"), value("parts")};
}

// The simulated GPU.
inline cuda::Gpu simulated_gpu(int shared_block) {
  return {132, shared_block, shared_block + cuda::kReservedShared, 800e12, 3e12};
}

}  // namespace r21d::simt
