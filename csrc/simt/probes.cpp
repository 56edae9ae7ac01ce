// The probes of the instructions on the host.
#include "cuda/probes.cuh"

#include <cstring>
#include <stdexcept>
#include <string>

#include "simt/bindings.h"
#include "simt/launch.h"

namespace py = pybind11;

namespace r21d::simt {
namespace {

using Words = py::array_t<uint32_t, py::array::c_style>;

Words probe(const std::string& name, const Words& input) {
  cuda::ProbeRun run = cuda::probe_run(name, input.size());
  if (run.probe == nullptr || !run.fits) {
    throw std::invalid_argument("there is no probe '" + name + "', or the input has other rounds");
  }
  Words output(run.params.rounds * run.probe->words_out);
  const size_t bytes = output.size() * sizeof(uint32_t);
  std::memset(output.mutable_data(), 0, bytes);
  {
    const GlobalBuffer in("input", input.data(), input.size() * sizeof(uint32_t));
    const GlobalBuffer out("output", output.mutable_data(), bytes, true);
    run.params.in = in.pointer<const uint32_t>();
    run.params.out = out.pointer<uint32_t>();
    Launch wanted{.kernel = "instructions"};
    wanted.grid = {cuda::ProbeGrid::kX, cuda::ProbeGrid::kY, cuda::ProbeGrid::kZ};
    wanted.threads = run.probe->threads;
    wanted.dynamic_shared = cuda::kProbeShared;
    launch(wanted, [&] { cuda::instructions_kernel<cuda::kMostProbeThreads>(run.params); });
  }
  return output;
}

}  // namespace

void bind_probes(py::module_& module) {
  module.def(
      "probe",
      probe,
      "What an instruction of cuda/ptx.cuh does: words in, words out (cuda/probe_table.h).",
      py::arg("name"),
      py::arg("input"));
  py::list names;
  for (const cuda::Probe& row : cuda::kProbes) {
    names.append(row.name);
  }
  module.attr("probes") = names;
}

}  // namespace r21d::simt
