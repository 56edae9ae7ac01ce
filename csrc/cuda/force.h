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
  const std::pair<const char*, int*> names[] = {
      {"spatial.pixel_warps", &forced.spatial.pixel_warps},
      {"spatial.columns", &forced.spatial.columns},
      {"temporal.pixel_warps", &forced.temporal.pixel_warps},
      {"temporal.columns", &forced.temporal.columns},
      {"fused.pixel_warps", &forced.fused.pixel_warps},
      {"fused.mids", &forced.fused.columns},
      {"fused.bands", &forced.fused.bands},
      {"fused.chunk", &forced.fused.chunk}};
  std::istringstream words(force);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    int* field = nullptr;
    for (const auto& [name, where] : names) {
      field = word.substr(0, equals) == name ? where : field;
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
