#pragma once

#include <cstdint>
#include <string>

namespace r21d::cuda {

// {"toolkit": "13.0", "driver": "13.0" or null, "devices": [{"name", "capability", "memory",
// "runs"}]}; "runs" tells whether this binary holds code for the device, found by loading it, which
// takes memory there. Of all devices (-1), null standing for one that cannot be asked, or of one.
std::string devices_json(int64_t device);

}  // namespace r21d::cuda
