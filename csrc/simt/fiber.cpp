#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

// The registers that a function must preserve go onto the stack of the one, and come back from that
// of the other. The last instruction is a jump: a return would be predicted to go where this fiber
// came from, which is one instruction of the kernel further than where the other one waits.
#define R21D_TEXT(x) R21D_TEXT_(x)
#define R21D_TEXT_(x) #x
#define R21D_SWITCH R21D_TEXT(__USER_LABEL_PREFIX__) "r21d_simt_switch"

#if defined(__x86_64__)
// clang-format off
asm(".text\n"
    ".globl " R21D_SWITCH "\n"
    ".p2align 4\n"
    R21D_SWITCH ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  popq %rcx\n"
    "  jmpq *%rcx\n");
// clang-format on
#else
// clang-format off
asm(".text\n"
    ".globl " R21D_SWITCH "\n"
    ".p2align 4\n"
    R21D_SWITCH ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  br x30\n");
// clang-format on
#endif

namespace r21d::simt {
namespace {

constexpr size_t kGuardBytes = 64 << 10;  // a multiple of any page size
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kPitch = kGuardBytes + kStackBytes;

// Tops of stacks at one distance from a page boundary would all fall into the same few sets of the
// L1 cache; they are spread over a page.
constexpr size_t kSpread = 1088;

}  // namespace

Stacks::Stacks(int count) : bytes_(static_cast<size_t>(count) * kPitch) {
  void* base =
      mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
  if (base == MAP_FAILED) {
    throw std::bad_alloc();
  }
  base_ = static_cast<char*>(base);
  for (int i = 0; i < count; ++i) {
    mprotect(base_ + static_cast<size_t>(i) * kPitch, kGuardBytes, PROT_NONE);
  }
}

Stacks::~Stacks() {
  munmap(base_, bytes_);
}

Context Stacks::prepare(int index, void (*entry)()) const {
  const size_t spread = static_cast<size_t>(index) * kSpread % 4096 / 64 * 64;
  char* top = base_ + static_cast<size_t>(index + 1) * kPitch - spread;
  // A frame as r21d_simt_switch leaves it, whose return address is the entry.
#if defined(__x86_64__)
  constexpr size_t kFrame = 64;   // six registers, the return address, and none for `entry`
  constexpr size_t kReturn = 48;  // leaves the stack as after a call: 8 bytes off a boundary of 16
#else
  constexpr size_t kFrame = 160;
  constexpr size_t kReturn = 88;
#endif
  char* frame = top - kFrame;
  std::memset(frame, 0, kFrame);
  std::memcpy(frame + kReturn, &entry, sizeof(entry));
  return frame;
}

}  // namespace r21d::simt
