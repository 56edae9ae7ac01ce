// build_info: what the library was built with and what this machine offers, as JSON.
#include <sstream>
#include <string>

#include "cpu/isa.h"
#include "torch_compat.h"

#ifdef R21D_CUDA
#include "cuda/devices.h"
#endif

namespace r21d {
namespace {

constexpr int kCapacity = 8;

std::string cpu_isas() {
  const cpu::Isa* tables[kCapacity];
  const int count = cpu::available_isas(tables, kCapacity);
  std::string names;
  for (int i = 0; i < count; ++i) {
    names += std::string(i > 0 ? " " : "") + tables[i]->name;
  }
  return names;
}

std::string cuda_info([[maybe_unused]] int64_t device) {
#ifdef R21D_CUDA
  return cuda::devices_json(device);
#else
  return "null";
#endif
}

std::string build_info() {
  const cpu::Isa* tables[kCapacity];
  const int count = cpu::available_isas(tables, kCapacity);
  std::ostringstream json;
  json << "{\"cpu\": {\"isa\": \"" << cpu::isa().name << "\", \"available\": [";
  for (int i = 0; i < count; ++i) {
    json << (i > 0 ? ", " : "") << '"' << tables[i]->name << '"';
  }
  json << "], \"l2_bytes\": " << cpu::l2_bytes() << "}, \"cuda\": " << cuda_info(-1) << '}';
  return json.str();
}

}  // namespace
}  // namespace r21d

STABLE_TORCH_LIBRARY_IMPL(r21d, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&r21d::build_info));
  m.impl("cuda_info", TORCH_BOX(&r21d::cuda_info));
  m.impl("cpu_isas", TORCH_BOX(&r21d::cpu_isas));
}
