// What conversions to sparse layouts share: the stored values of a row, and int4 codes in halves of bytes.
#pragma once

#include <cstdint>

namespace pumice::formats {

constexpr int64_t kCollected = 512;  // columns whose stored values are collected before they are copied out
constexpr int kMiddle = 8;           // the int4 code of 0

// Copies what is not 0 of `count` values to `out`, and its columns. Without a branch for each value: it writes them all and
// keeps those that count, so out and columns have room for `count` and one more.
template <class T, class Index>
inline int64_t collect(const T* values, int64_t first, int64_t count, Index* columns, T* out) noexcept {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    columns[n] = static_cast<Index>(first + i);
    out[n] = values[i];
    n += values[i] != T(0);
  }
  return n;
}

// Puts codes into a row of int4, at place `at` of it; the half byte behind the last one is 0.
inline void put_codes(uint8_t* row, int64_t at, const int8_t* codes, int64_t count) noexcept {
  const auto code = [&](int64_t i) { return static_cast<unsigned>(codes[i] + kMiddle); };
  int64_t i = 0;
  if (at % 2 && count) row[at / 2] = static_cast<uint8_t>(row[at / 2] | code(i++) << 4);
  uint8_t* out = row + (at + 1) / 2;
  for (; i + 1 < count; i += 2) *out++ = static_cast<uint8_t>(code(i) | code(i + 1) << 4);
  if (i < count) *out = static_cast<uint8_t>(code(i));
}

}  // namespace pumice::formats
