// The Python module _simt: the simulator's options and reports, and the kernels that it runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "simt/bindings.h"
#include "simt/fault.h"
#include "simt/launch.h"
#include "simt/options.h"

namespace py = pybind11;

namespace r21d::simt {
namespace {

template <class Value>
Value named(
    const char* argument,
    const std::string& name,
    std::initializer_list<std::pair<const char*, Value>> known) {
  std::string names;
  for (const auto& [known_name, value] : known) {
    if (name == known_name) {
      return value;
    }
    names += std::string(names.empty() ? "" : ", ") + known_name;
  }
  throw std::invalid_argument(std::string(argument) + "='" + name + "' is not one of " + names);
}

void set_options_by_name(
    const std::string& mode,
    const std::string& order,
    uint64_t seed,
    const std::optional<std::pair<std::string, std::string>>& mutate,
    bool traffic) {
  Options wanted;
  wanted.mode = named<Mode>("mode", mode, {{"late", Mode::kLate}, {"early", Mode::kEarly}});
  wanted.order = named<Order>(
      "order",
      order,
      {{"forward", Order::kForward},
       {"reversed", Order::kReversed},
       {"shuffled", Order::kShuffled}});
  wanted.seed = seed;
  wanted.traffic = traffic;
  if (mutate) {
    wanted.site = mutate->first;
    wanted.perturbation = perturbation_of(mutate->second);
  }
  set_options(wanted);
}

py::list sites_by_name() {
  py::list rows;
  for (const SiteInfo& info : sites()) {
    py::list operations;
    for (const Operation operation : info.operations) {
      operations.append(operation_name(operation));
    }
    py::list perturbations;
    for (const Perturbation perturbation : info.perturbations) {
      perturbations.append(perturbation_name(perturbation));
    }
    py::dict row;
    row["id"] = info.id;
    row["name"] = info.name;
    row["operations"] = operations;
    row["perturbations"] = perturbations;
    row["executed"] = info.executed;
    rows.append(row);
  }
  return rows;
}

py::dict report() {
  py::dict row;
  row["blocks"] = last_report().blocks;
  row["uninitialised_reads"] = last_report().uninitialised_reads;
  return row;
}

// Fault as an exception with its parts as attributes.
void bind_fault(py::module_& module) {
  static py::handle type = py::exception<Fault>(module, "Fault", PyExc_RuntimeError).release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) {
        std::rethrow_exception(thrown);
      }
    } catch (const Fault& fault) {
      py::object value = type(fault.what());
      value.attr("kind") = fault.kind;
      value.attr("kernel") = fault.kernel;
      value.attr("block") = fault.block;
      value.attr("thread") = fault.thread;
      value.attr("site") = fault.site;
      value.attr("message") = fault.message;
      PyErr_SetObject(type.ptr(), value.ptr());
    }
  });
}

}  // namespace
}  // namespace r21d::simt

PYBIND11_MODULE(_simt, module) {
  using namespace r21d::simt;
  bind_fault(module);
  module.def(
      "options",
      set_options_by_name,
      "How launches run from now on; what is not given goes back to its default.",
      py::kw_only(),
      py::arg("mode") = "late",
      py::arg("order") = "forward",
      py::arg("seed") = 0,
      py::arg("mutate") = py::none(),
      py::arg("traffic") = false);
  module.def("sites", sites_by_name, "Sites reached so far, with executions in the last launch.");
  module.def("report", report, "Counts of the last launch.");
  bind_textbook(module);
  bind_trace(module);
  bind_inference(module);
  bind_training(module);
  bind_probes(module);
}
