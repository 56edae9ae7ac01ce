// The GPUs that this binary sees and whether it holds code for them.
#include "cuda/devices.h"

#include <cuda_runtime.h>

#include <sstream>

namespace r21d::cuda {
namespace {

// Never launched: asking the runtime for its attributes loads the binary's code for the device.
__global__ void probe() {
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string escaped(const char* text) {
  std::string out;
  for (; *text != '\0'; ++text) {
    if (*text == '"' || *text == '\\') {
      out += '\\';
    }
    out += *text;
  }
  return out;
}

bool holds_code_for(int device) {
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess || cudaSetDevice(device) != cudaSuccess) {
    return false;
  }
  cudaFuncAttributes attributes{};
  const bool loaded = cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
  cudaSetDevice(current);
  return loaded;
}

std::string device_json(int device) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    cudaGetLastError();
    return "null";
  }
  std::ostringstream json;
  json << "{\"name\": \"" << escaped(properties.name) << "\", \"capability\": \""
       << properties.major << '.' << properties.minor
       << "\", \"memory\": " << properties.totalGlobalMem
       << ", \"runs\": " << (holds_code_for(device) ? "true" : "false") << '}';
  return json.str();
}

}  // namespace

std::string devices_json(int64_t wanted) {
  std::ostringstream json;
  json << "{\"toolkit\": \"" << version(CUDART_VERSION) << "\", \"driver\": ";
  int driver = 0;
  int count = 0;
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  if (has_driver) {
    json << '"' << version(driver) << '"';
  } else {
    json << "null";
  }
  if (!has_driver || cudaGetDeviceCount(&count) != cudaSuccess) {
    count = 0;
    cudaGetLastError();  // a missing device must not look like a failed launch later
  }
  json << ", \"devices\": [";
  const char* comma = "";
  for (int device = 0; device < count; ++device) {
    if (wanted < 0 || wanted == device) {
      json << comma << device_json(device);
      comma = ", ";
    }
  }
  json << "]}";
  return json.str();
}

}  // namespace r21d::cuda
