// How launches run: when asynchronous copies are carried out, whose turn it is, what is perturbed.
#pragma once

#include <cstdint>
#include <string>

#include "simt/site.h"

namespace r21d::simt {

// Asynchronous copies are carried out as late as their wait allows, or at once. A correct kernel
// cannot tell.
enum class Mode { kLate, kEarly };

// Whose turn it is among blocks, warps and the lanes of a warp.
enum class Order { kForward, kReversed, kShuffled };

struct Options {
  Mode mode = Mode::kLate;
  Order order = Order::kForward;
  uint64_t seed = 0;                                // of kShuffled
  std::string site;                                 // the one that is perturbed (site_id), or none
  Perturbation perturbation = Perturbation::kNone;  // how
  bool traffic = false;  // count the bytes of global memory that are used
};

// In force for every launch until set again.
const Options& options();

// Throws std::invalid_argument where the site is known and does not take the perturbation.
void set_options(const Options&);

}  // namespace r21d::simt
