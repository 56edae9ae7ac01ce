// Vector clocks: which accesses are ordered before which. An actor is whatever accesses memory on
// its own: a thread; with TMA, a copy engine as well.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace r21d::simt {

// Up to which clock of each actor everything is ordered before one's own next access. Immutable;
// all that leave a barrier share one.
using Knowledge = std::shared_ptr<const std::vector<uint32_t>>;

// ReadSet packs a clock into 24 bits.
inline constexpr uint32_t kClockLimit = 1 << 24;

struct Actor {
  uint32_t id = 0;
  uint32_t now = 0;    // one's own clock: counts the times one's accesses were made known
  uint32_t begin = 0;  // the clock at which its block began; earlier ones are other blocks'
  Knowledge known;

  // Whether what `actor` did at `clock` is ordered before this actor's next access.
  bool follows(uint32_t actor, uint32_t clock) const {
    return actor == id ? clock >= begin : (*known)[actor] >= clock;
  }
};

// Makes known to some actors what others did: the heart of every barrier.
class Join {
 public:
  // Adds what `actor` did and what it knows; what it does from now on is not part of it.
  void add(Actor& actor) {
    if (joined_.empty()) {
      joined_ = *actor.known;
      last_ = actor.known;
    } else if (actor.known != last_) {
      for (size_t i = 0; i < joined_.size(); ++i) {
        joined_[i] = std::max(joined_[i], (*actor.known)[i]);
      }
      last_ = actor.known;
    }
    joined_[actor.id] = actor.now;
    if (++actor.now == kClockLimit) {
      throw std::overflow_error("too many barriers in one launch for the simulator's clocks");
    }
  }

  // What all that were added know together; empties the join.
  Knowledge take() {
    last_.reset();
    Knowledge result = std::make_shared<const std::vector<uint32_t>>(std::move(joined_));
    joined_.clear();
    return result;
  }

 private:
  std::vector<uint32_t> joined_;
  Knowledge last_;  // actors that come together mostly know the same
};

}  // namespace r21d::simt
