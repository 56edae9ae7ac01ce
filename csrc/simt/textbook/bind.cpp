// The textbook kernels as functions of numpy arrays; every bug by its name in Python.
#include <pybind11/pybind11.h>

#include "simt/arrays.h"
#include "simt/bindings.h"
#include "simt/launch.h"
#include "simt/textbook/histogram.h"
#include "simt/textbook/matmul.h"
#include "simt/textbook/pipeline.h"
#include "simt/textbook/producer.h"
#include "simt/textbook/reduce.h"
#include "simt/textbook/relay.h"
#include "simt/textbook/slots.h"
#include "simt/textbook/stencil.h"
#include "simt/textbook/transpose.h"
#include "simt/textbook/warp.h"

namespace py = pybind11;

namespace r21d::simt::textbook {
namespace {

uint32_t blocks_of(int64_t size, int each) {
  return static_cast<uint32_t>((size + each - 1) / each);
}

void reduce(const Array<float>& x, Array<float>& sums, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> sums_buffer("sums", sums);
  const Reduce p{x_buffer.pointer<float>(), sums_buffer.get(), static_cast<int>(x.shape(1)), bug};
  launch(
      {.kernel = "reduce",
       .grid = {static_cast<uint32_t>(x.shape(0)), 1, 1},
       .threads = kReduceThreads},
      [&] { reduce_kernel(p); });
}

void transpose(const Array<float>& x, Array<float>& y, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> y_buffer("y", y);
  const Transpose p{
      x_buffer.get(),
      y_buffer.get(),
      static_cast<int>(x.shape(0)),
      static_cast<int>(x.shape(1)),
      bug};
  launch(
      {.kernel = "transpose",
       .grid = {blocks_of(p.columns, kTransposeTile), blocks_of(p.rows, kTransposeTile), 1},
       .threads = kTransposeThreads,
       .dynamic_shared = 4 * kTransposeTile * (kTransposeTile + 1)},
      [&] { transpose_kernel(p); });
}

void stencil(const Array<float>& x, Array<float>& y, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> y_buffer("y", y);
  const Stencil p{x_buffer.get(), y_buffer.get(), static_cast<int>(x.size()), bug};
  launch(
      {.kernel = "stencil",
       .grid = {blocks_of(p.size, kStencilThreads), 1, 1},
       .threads = kStencilThreads,
       .dynamic_shared = 4 * (kStencilThreads + 2)},
      [&] { stencil_kernel(p); });
}

void pipeline(const Array<float>& x, Array<float>& sums, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> sums_buffer("sums", sums);
  const Pipeline p{x_buffer.get(), sums_buffer.get(), static_cast<int>(x.shape(0)), bug};
  launch(
      {.kernel = "pipeline",
       .threads = kPipelineThreads,
       .dynamic_shared = kPipelineStages * kPipelineRowBytes},
      [&] { pipeline_kernel(p); });
}

template <class T>
void matmul_of(const Matmul& p, bool transposed) {
  launch(
      {.kernel = "matmul",
       .grid = {blocks_of(p.n, kMatmulTile), blocks_of(p.m, kMatmulTile), 1},
       .threads = kMatmulThreads,
       .dynamic_shared = 2 * kMatmulTileBytes},
      [&] { transposed ? matmul_kernel<T, true>(p) : matmul_kernel<T, false>(p); });
}

// The format of a and b is bfloat16 or float16, as uint16.
void matmul(
    const Array<uint16_t>& a,
    const Array<uint16_t>& b,
    Array<float>& c,
    bool bfloat16,
    bool transposed,
    Bug bug) {
  const InputBuffer<uint16_t> a_buffer("a", a);
  const InputBuffer<uint16_t> b_buffer("b", b);
  const OutputBuffer<float> c_buffer("c", c);
  const Matmul p{
      a_buffer.get(),
      b_buffer.get(),
      c_buffer.get(),
      static_cast<int>(c.shape(0)),
      static_cast<int>(c.shape(1)),
      static_cast<int>(a.shape(1)),
      bug};
  bfloat16 ? matmul_of<ptx::Bfloat16>(p, transposed) : matmul_of<ptx::Float16>(p, transposed);
}

void producer(const Array<float>& x, Array<float>& y, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> y_buffer("y", y);
  const Producer p{x_buffer.get(), y_buffer.get(), static_cast<int>(x.shape(0)), bug};
  launch({.kernel = "producer", .threads = kProducerThreads}, [&] { producer_kernel(p); });
}

void histogram(const Array<uint32_t>& x, Array<uint32_t>& counts, Bug bug) {
  const InputBuffer<uint32_t> x_buffer("x", x);
  const OutputBuffer<uint32_t> counts_buffer("counts", counts);
  const Histogram p{x_buffer.get(), counts_buffer.get(), static_cast<int>(x.shape(1)), bug};
  launch(
      {.kernel = "histogram",
       .grid = {static_cast<uint32_t>(x.shape(0)), 1, 1},
       .threads = kHistogramThreads},
      [&] { histogram_kernel(p); });
}

void rotate(const Array<float>& x, Array<float>& y, int rounds, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> y_buffer("y", y);
  const Rotate p{x_buffer.get(), y_buffer.get(), rounds, bug};
  launch({.kernel = "rotate", .threads = kRotateThreads}, [&] { rotate_kernel(p); });
}

void relay(const Array<float>& x, Array<float>& y, Bug bug) {
  const InputBuffer<float> x_buffer("x", x);
  const OutputBuffer<float> y_buffer("y", y);
  const Relay p{x_buffer.get(), y_buffer.get(), bug};
  launch(
      {.kernel = "relay", .grid = {blocks_of(x.size(), 32), 1, 1}, .threads = kRelayThreads},
      [&] { relay_kernel(p); });
}

void slots(const Array<uint16_t>& x, Array<uint32_t>& y) {
  const InputBuffer<uint16_t> x_buffer("x", x);
  const OutputBuffer<uint32_t> y_buffer("y", y);
  launch({.kernel = "slots", .threads = kSlotThreads}, [&] {
    slots_kernel(x_buffer.get(), y_buffer.get());
  });
}

// A launch of a kernel that does nothing.
void idle(int threads, size_t dynamic_shared, size_t shared_limit) {
  launch(
      {.kernel = "idle",
       .threads = threads,
       .dynamic_shared = dynamic_shared,
       .shared_limit = shared_limit},
      [] {});
}

void bind_bugs(py::module_& module) {
  py::enum_<Bug> bugs(module, "Bug");
#define R21D_VALUE(name) bugs.value(#name, Bug::name);
  R21D_BUGS(R21D_VALUE)
#undef R21D_VALUE
}

}  // namespace
}  // namespace r21d::simt::textbook

namespace r21d::simt {

void bind_textbook(py::module_& module) {
  using namespace textbook;
  const auto in = [](const char* name) { return py::arg(name).noconvert(); };
  bind_bugs(module);
  const auto bug = py::arg("bug") = Bug::none;
  module.def("reduce", reduce, in("x"), in("sums"), bug);
  module.def("transpose", transpose, in("x"), in("y"), bug);
  module.def("stencil", stencil, in("x"), in("y"), bug);
  module.def("pipeline", pipeline, in("x"), in("sums"), bug);
  module.def(
      "matmul",
      matmul,
      in("a"),
      in("b"),
      in("c"),
      py::arg("bfloat16"),
      py::arg("transposed") = false,
      bug);
  module.def("producer", producer, in("x"), in("y"), bug);
  module.def("histogram", histogram, in("x"), in("counts"), bug);
  module.def("rotate", rotate, in("x"), in("y"), py::arg("rounds"), bug);
  module.def("relay", relay, in("x"), in("y"), bug);
  module.def("slots", slots, in("x"), in("y"));
  module.def(
      "idle",
      idle,
      py::arg("threads"),
      py::arg("dynamic_shared") = 0,
      py::arg("shared_limit") = Launch{}.shared_limit);
}

}  // namespace r21d::simt
