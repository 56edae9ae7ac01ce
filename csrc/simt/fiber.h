// Fibers: flows of control with a stack each, switched by hand. One costs a few nanoseconds, where
// ucontext, which saves the signal mask in the kernel, takes 400.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the host simulator switches fibers on x86-64 and aarch64 only"
#endif

namespace r21d::simt {

// A suspended fiber: its stack pointer. Everything else is on its stack.
using Context = void*;

// Suspends the running fiber into `*from` and goes on with `to`.
extern "C" void r21d_simt_switch(Context* from, Context to);

// Stacks of 64 KB for the threads of a block, each with an inaccessible page beneath it.
class Stacks {
 public:
  explicit Stacks(int count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // A fiber that will start in `entry`, which must not return. Whatever ran on the stack is gone.
  Context prepare(int index, void (*entry)()) const;

 private:
  char* base_;
  size_t bytes_;
};

}  // namespace r21d::simt
