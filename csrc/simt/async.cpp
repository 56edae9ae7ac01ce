#include "simt/async.h"

#include <cstring>

#include "simt/block.h"

namespace r21d::simt {

void AsyncCopies::issue(Block& block, ptx::Address to, const void* from) {
  const Copy copy{to, from};
  copies_.push_back(copy);
  ++open_;
  if (block.options.mode == Mode::kEarly) {
    carry_out(block, copy);
  }
}

void AsyncCopies::commit() {
  groups_.push_back(open_);
  open_ = 0;
}

void AsyncCopies::wait(Block& block, const Actor& agent, size_t pending) {
  if (groups_.size() <= pending) {
    return;
  }
  const auto last_group = groups_.end() - static_cast<std::ptrdiff_t>(pending);
  size_t landing = 0;
  for (auto group = groups_.begin(); group != last_group; ++group) {
    landing += *group;
  }
  for (size_t i = 0; i < landing; ++i) {
    if (block.options.mode == Mode::kLate) {
      carry_out(block, copies_[i]);
    }
    block.shared.end_copy(agent, copies_[i].to);
  }
  copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(landing));
  groups_.erase(groups_.begin(), last_group);
}

void AsyncCopies::finish(Block& block) {
  if (block.options.mode == Mode::kLate) {
    for (const Copy& copy : copies_) {
      carry_out(block, copy);
    }
  }
  copies_.clear();
  groups_.clear();
  open_ = 0;
}

void AsyncCopies::carry_out(Block& block, const Copy& copy) const {
  unsigned char* to = block.shared.bytes(copy.to);
  if (copy.from == nullptr) {
    std::memset(to, 0, 16);
  } else {
    std::memcpy(to, copy.from, 16);
  }
}

}  // namespace r21d::simt
