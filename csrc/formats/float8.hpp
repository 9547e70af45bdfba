// float8, which is E4M3: to float16. Portable C++; the definition is docs/formats.md.
#pragma once

#include <cstdint>

namespace pumice {

// Dense weights: codes[row][col], scales[row][ceil(cols / group)].
struct DenseFloat8 {
  const uint8_t* codes;
  const float* scales;
  int64_t rows, cols, group;
};

namespace formats {

// Codes as float16 bits of their values / kFloat8Unit. Exact: exponents differ by 8; subnormals and NaN are what they were.
constexpr float kFloat8Unit = 256;
void halve_float8(const uint8_t* codes, int64_t count, uint16_t* bits) noexcept;

}  // namespace formats
}  // namespace pumice
