#pragma once

#include <string>

namespace r21d::cuda {

// {"toolkit": "13.0", "driver": "13.0" or null, "devices": [{"name", "capability", "memory",
// "runs"}]}; "runs" tells whether this binary holds code for the device, found by loading it.
std::string devices_json();

}  // namespace r21d::cuda
