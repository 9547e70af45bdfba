// Integer codes: decoding, packing, panels. Portable C++; the definition is docs/formats.md. Encoding is a kernel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "formats/packing.hpp"
#include "views.hpp"

namespace pumice::formats {

// Adding and subtracting 1.5 * 2^23 rounds to an integer, half to even, for |v| < 2^22; larger ones are clipped first.
static inline float round_half_even(float v) noexcept {
  constexpr float kMagic = 12582912.0f;
  v = std::min(std::max(v, -1024.0f), 1024.0f);
  return (v + kMagic) - kMagic;
}

// The code of `v`, from 0 to `top`, still as a float, and what a code stands for: docs/formats.md, "Integers". Without
// minima `minimum` is -0.0: v + -0.0 is v to the bit. A scale of 0 has the code `zero`.
static inline float nearest_code(float v, float scale, float zero, float minimum, float top) noexcept {
  const float code = scale == 0.0f ? zero : zero + round_half_even((v - minimum) / scale);
  // The order of these comparisons sends NaN to 0, so that the conversion to an integer is always defined.
  return code > 0.0f ? std::min(code, top) : 0.0f;
}
static inline float decoded(float code, float scale, float zero, float minimum) noexcept {
  return scale * (code - zero) + minimum;
}

// Flat index of the first NaN or infinity, or -1.
using AllFinite = bool (*)(const float* values, int64_t count);  // the kernel
int64_t first_nonfinite(const float* values, int64_t count, AllFinite all_finite) noexcept;

// How the columns of a row share scales: `groups` = ceil(cols / group).
struct Groups {
  int64_t cols, group, groups;
  int bits;
};

// The codes of `count` values of one group with the symmetric zero, less that zero: 0 is the code of 0.
void signed_codes(const float* values, int64_t count, float scale, int bits, int8_t* codes) noexcept;
// Below, rows [begin, end): callers split rows over threads.
void decode(const uint8_t* packed, const Grid& grid, int64_t group, int64_t cols, uint8_t flip, int64_t begin, int64_t end,
            float* w) noexcept;

// codes[row][col], one byte each. pack returns the flat index of the first code that does not fit, or -1.
int64_t pack(const uint8_t* codes, int64_t cols, int bits, int64_t begin, int64_t end, uint8_t* packed) noexcept;
void unpack(const uint8_t* packed, int64_t cols, int bits, int64_t begin, int64_t end, uint8_t* codes) noexcept;

// Canonical rows -> panels of 16 rows (views.hpp, Unit); `begin`, `end` count panels.
void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, int64_t begin, int64_t end,
             uint8_t* panels) noexcept;
// One row of prepacked panels -> a canonical row.
void unprepack(const uint8_t* panels, int64_t row, int64_t cols, int bits, uint8_t* packed) noexcept;

}  // namespace pumice::formats
