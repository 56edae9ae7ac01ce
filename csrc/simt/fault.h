// What the simulator throws when a kernel does what it must not.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace r21d::simt {

class Fault : public std::runtime_error {
 public:
  Fault(
      std::string fault_kind,
      std::string kernel_name,
      std::string block_index,
      int thread_index,
      std::string site_name,
      std::string description)
      : std::runtime_error(
            fault_kind + " in kernel '" + kernel_name + "', block " + block_index + ", thread " +
            std::to_string(thread_index) + ", " + site_name + ": " + description),
        kind(std::move(fault_kind)),
        kernel(std::move(kernel_name)),
        block(std::move(block_index)),
        thread(thread_index),
        site(std::move(site_name)),
        message(std::move(description)) {
  }

  std::string kind;    // "race", "out of bounds", "misaligned", "deadlock", ...
  std::string kernel;  // as the launch calls it
  std::string block;   // "(x, y, z)"
  int thread;          // in its block
  std::string site;    // file:line, and the site's name where the operation has one
  std::string message;
};

}  // namespace r21d::simt
