// What an operator's tensors must be, and the problem that they state. For every device.
#pragma once

#include "geometry.h"
#include "torch_compat.h"

namespace r21d {

SpatialGeometry spatial_geometry(
    const Tensor& x, const Tensor& weight, const Ints& stride, const Ints& padding);

TemporalGeometry temporal_geometry(
    int64_t n,
    int64_t t,
    int64_t ho,
    int64_t wo,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding);

// y of the inference operator, uninitialised; refuses a residual that is not like it.
Tensor inference_output(const Tensor& x, const TemporalGeometry& t, const OptionalTensor& residual);

}  // namespace r21d
