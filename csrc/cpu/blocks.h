// Output channels of a convolution, cut into blocks of one to kMaxVectors vectors: what one gemm
// call computes.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "geometry.h"

namespace r21d::cpu {

struct Block {
  int64_t first;     // channel
  int64_t channels;  // real ones; the rest of the vectors is padding
  int vectors;
};

// Three vectors each, the last ones fewer; 3 + 1 is cut as 2 + 2, since one vector leaves the
// multipliers waiting for the broadcasts.
class Blocks {
 public:
  Blocks(int64_t channels, int lanes)
      : channels_(channels), lanes_(lanes), vectors_(ceil_div(channels, lanes)) {
  }

  int64_t count() const {
    return ceil_div(vectors_, kMaxVectors);
  }

  // Channels with the padding of the last vector.
  int64_t padded() const {
    return vectors_ * lanes_;
  }

  Block operator[](int64_t i) const {
    int64_t first = i * kMaxVectors;
    int64_t end = first + kMaxVectors < vectors_ ? first + kMaxVectors : vectors_;
    if (vectors_ % kMaxVectors == 1 && vectors_ > 1) {
      if (i == count() - 2) {
        end -= 1;
      } else if (i == count() - 1) {
        first -= 1;
      }
    }
    const int64_t left = channels_ - first * lanes_;
    const int64_t width = (end - first) * lanes_;
    return {first * lanes_, left < width ? left : width, static_cast<int>(end - first)};
  }

 private:
  int64_t channels_;
  int lanes_;
  int64_t vectors_;
};

// `count` items cut into the fewest runs of at most `most`, of sizes that differ by one at most.
class Runs {
 public:
  Runs(int64_t count, int64_t most) : count_(count), runs_(count > 0 ? ceil_div(count, most) : 0) {
  }
  int64_t size() const {
    return runs_;
  }
  int64_t begin(int64_t i) const {
    return count_ * i / runs_;
  }

 private:
  int64_t count_;
  int64_t runs_;
};

}  // namespace r21d::cpu
