// Loops that are unrolled in the source. GCC keeps an array of accumulators in registers only if its indices are constants
// before its own unroller runs; a plain loop over them leaves the accumulators on the stack, silently and four times slower.
#pragma once

// For lambdas with accumulators: one that is called keeps them in memory, and `flatten` does not reach into large ones.
#define ALWAYS_INLINE __attribute__((always_inline))

namespace pumice {
namespace {

template <int kValue>
struct Index {
  constexpr operator int() const { return kValue; }
};

// body(Index<0>{}), body(Index<1>{}), ... body(Index<kCount - 1>{})
template <int kCount, int kFrom = 0, class Body>
__attribute__((always_inline)) inline void unroll(const Body& body) {
  if constexpr (kFrom < kCount) {
    body(Index<kFrom>{});
    unroll<kCount, kFrom + 1>(body);
  }
}

// body(Index<bits>{}) for the widths of integer codes.
template <class Body>
inline auto with_bits(int bits, const Body& body) {
  switch (bits) {
    case 2: return body(Index<2>{});
    case 3: return body(Index<3>{});
    case 4: return body(Index<4>{});
    case 5: return body(Index<5>{});
    case 6: return body(Index<6>{});
    default: return body(Index<8>{});
  }
}

}  // namespace
}  // namespace pumice
