// Where the set bits of a byte are, for ISAs that have byte shuffles and no expand instruction. Included by their vocabularies.
#pragma once

#include <cstdint>

namespace pumice::PUMICE_ISA {
namespace {

// rank[mask][i]: how many bits of the mask are set below bit i; 0x80 and up if bit i is not.
struct Places {
  alignas(64) uint8_t rank[256][8];
  constexpr Places() : rank() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int i = 0, set = 0; i < 8; ++i) {
        const bool here = mask >> i & 1;
        rank[mask][i] = here ? static_cast<uint8_t>(set++) : uint8_t{0x80};
      }
    }
  }
};
constexpr Places kPlaces;

}  // namespace
}  // namespace pumice::PUMICE_ISA
