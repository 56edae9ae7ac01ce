// Numbers that are the same for a seed with every standard library.
#pragma once

#include <cstdint>
#include <utility>

namespace r21d::simt {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {
  }

  // splitmix64 (Steele, Lea and Flood, OOPSLA 2014), below `limit`.
  uint32_t below(uint32_t limit) {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) % limit);
  }

  template <class Values>
  void shuffle(Values& values) {
    for (auto i = static_cast<uint32_t>(std::size(values)); i > 1; --i) {
      std::swap(values[i - 1], values[below(i)]);
    }
  }

 private:
  uint64_t state_;
};

}  // namespace r21d::simt
