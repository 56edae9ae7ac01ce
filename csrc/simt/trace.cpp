// Races of a written-down sequence of accesses, to hold the shadow memory to its definition.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "simt/bindings.h"
#include "simt/shadow.h"

namespace py = pybind11;

namespace r21d::simt {
namespace {

// ("read" | "write" | "atomic" | "copy" | "land", actor, offset, bytes), or
// ("join", actors that make known what they did, those of them that get to know it).
const Conflict* follow(Shadow& shadow, std::vector<Actor>& actors, const py::tuple& event) {
  const auto kind = event[0].cast<std::string>();
  if (kind == "join") {
    Join join;
    for (const auto id : event[1].cast<std::vector<size_t>>()) {
      join.add(actors.at(id));
    }
    const Knowledge known = join.take();
    for (const auto id : event[2].cast<std::vector<size_t>>()) {
      actors.at(id).known = known;
    }
    return nullptr;
  }
  const Actor& actor = actors.at(event[1].cast<size_t>());
  const auto offset = event[2].cast<size_t>();
  const auto bytes = event[3].cast<size_t>();
  const auto where = std::source_location::current();
  if (kind == "read") {
    return shadow.read(actor, offset, bytes);
  }
  if (kind == "write") {
    return shadow.write(actor, offset, bytes, where);
  }
  if (kind == "atomic") {
    return shadow.atomic(actor, offset);
  }
  if (kind == "copy") {
    return shadow.begin_copy(actor, offset, where);
  }
  if (kind == "land") {
    shadow.end_copy(actor, offset);
    return nullptr;
  }
  throw std::invalid_argument("'" + kind + "' is no event");
}

// Of each event whether it races with an earlier one; what does is as if it had not happened.
std::vector<bool> races(size_t bytes, size_t count, const std::vector<py::tuple>& events) {
  std::vector<Actor> actors(count);
  for (size_t id = 0; id < count; ++id) {
    actors[id].id = static_cast<uint32_t>(id);
    actors[id].now = actors[id].begin = 1;
    actors[id].known = std::make_shared<const std::vector<uint32_t>>(count);
  }
  Shadow shadow(bytes, static_cast<uint32_t>(count));
  std::vector<bool> found;
  for (const py::tuple& event : events) {
    found.push_back(follow(shadow, actors, event) != nullptr);
  }
  return found;
}

}  // namespace

void bind_trace(py::module_& module) {
  module.def("races", races, py::arg("bytes"), py::arg("actors"), py::arg("events"));
}

}  // namespace r21d::simt
