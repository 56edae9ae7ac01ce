// Asynchronous copies from global to shared memory, and the groups that are waited for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simt/ptx_types.h"

namespace r21d::simt {

struct Actor;
struct Block;

// Those of one agent. From its issue until the agent's wait returns, a copy's destination is in
// flight: nobody may access it.
class AsyncCopies {
 public:
  // Copies 16 bytes to shared address `to`, zeros where `from` is null: now in Mode::kEarly, else
  // when a wait asks for it. Both ends have been checked.
  void issue(Block&, ptx::Address to, const void* from);

  // Closes the group of the copies since the last commit.
  void commit();

  // Lands all but the latest `pending` groups; they become visible as writes of `agent`.
  void wait(Block&, const Actor& agent, size_t pending);

  // Carries out what no wait asked for. The destinations stay in flight.
  void finish(Block&);

 private:
  struct Copy {
    ptx::Address to;
    const void* from;
  };

  void carry_out(Block&, const Copy&) const;

  std::vector<Copy> copies_;    // under way, oldest first
  std::vector<size_t> groups_;  // sizes of the closed groups under way, oldest first
  size_t open_ = 0;             // copies since the last commit
};

}  // namespace r21d::simt
