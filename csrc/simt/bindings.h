// What the Python module _simt is made of.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace r21d::simt {

void bind_textbook(pybind11::module_&);
void bind_trace(pybind11::module_&);
void bind_inference(pybind11::module_&);
void bind_training(pybind11::module_&);
void bind_probes(pybind11::module_&);

}  // namespace r21d::simt
