// numpy arrays as buffers of global memory.
#pragma once

#include <pybind11/numpy.h>

#include "simt/global_memory.h"

namespace r21d::simt {

// Contiguous; bound with noconvert, so that what a kernel writes reaches the caller's array.
template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

template <class T>
class InputBuffer : public GlobalBuffer {
 public:
  InputBuffer(const char* name, const Array<T>& x)
      : GlobalBuffer(name, x.data(), static_cast<size_t>(x.nbytes())) {
  }

  const T* get() const {
    return pointer<const T>();
  }
};

template <class T>
class OutputBuffer : public GlobalBuffer {
 public:
  OutputBuffer(const char* name, Array<T>& x)
      : GlobalBuffer(name, x.mutable_data(), static_cast<size_t>(x.nbytes()), true) {
  }

  T* get() const {
    return pointer<T>();
  }
};

}  // namespace r21d::simt
