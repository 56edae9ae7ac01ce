// A forced plan as text, for the operators that tests and `r21d_ops.dispatch` call.
#pragma once

#include <sstream>
#include <string>
#include <utility>

#include "cuda/planner.h"
#include "torch_compat.h"

namespace r21d::cuda {

// "fused.mids=48 fused.chunk=2": what of the plan is not free.
inline ForcedPlan parse_force(const std::string& force) {
  ForcedPlan forced;
  const std::pair<const char*, Forced*> kernels[] = {
      {"spatial", &forced.spatial},
      {"temporal", &forced.temporal},
      {"fused", &forced.fused},
      {"spatial_forward", &forced.spatial_forward},
      {"temporal_forward", &forced.temporal_forward},
      {"temporal_gradient", &forced.temporal_gradient},
      {"temporal_weight", &forced.temporal_weight},
      {"spatial_gradient", &forced.spatial_gradient},
      {"spatial_weight", &forced.spatial_weight}};
  const std::pair<const char*, int Forced::*> fields[] = {
      {"pixel_warps", &Forced::pixel_warps},
      {"columns", &Forced::columns},
      {"mids", &Forced::columns},
      {"bands", &Forced::bands},
      {"chunk", &Forced::chunk},
      {"parts", &Forced::parts}};
  std::istringstream words(force);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    int* field = nullptr;
    for (const auto& [kernel, values] : kernels) {
      for (const auto& [name, value] : fields) {
        const bool named = word.substr(0, equals) == std::string(kernel) + "." + name;
        field = named ? &(values->*value) : field;
      }
    }
    std::istringstream digits(equals == std::string::npos ? "" : word.substr(equals + 1));
    int value = 0;
    const bool is_number = digits >> value && digits.eof();
    STD_TORCH_CHECK(
        field != nullptr && is_number && value > 0,
        "force must name parts of a plan and positive numbers, such as 'fused.mids=48', not '",
        word,
        "'");
    *field = value;
  }
  return forced;
}

}  // namespace r21d::cuda
