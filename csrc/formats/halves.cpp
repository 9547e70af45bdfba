#include "formats/halves.hpp"

#include <algorithm>

namespace pumice::formats {
namespace {

constexpr int64_t kStrip = 1024;  // values between two looks for an overflow
constexpr uint32_t kInfinity = 0x7f800000u;

// Without branches, so that compilers vectorise. Adding half of the last kept bit, less one, and one more if that bit is set,
// carries into it exactly where half-to-even rounds up; below 2^-14 the addition of 0.5 rounds to multiples of 2^-24.
inline uint16_t to_float16(float v) noexcept {
  const uint32_t sign = bits_of(v) >> 16 & 0x8000u, size = bits_of(v) & 0x7fffffffu;
  const uint32_t normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
  uint32_t half = size < 0x38800000u ? subnormal : normal;
  half = size >= 0x47800000u ? 0x7c00u : half;  // 65536 and up
  half = size > kInfinity ? 0x7e00u : half;
  return static_cast<uint16_t>(sign | half);
}

inline uint16_t to_bfloat16(float v) noexcept {
  const uint32_t bits = bits_of(v), finite = (bits & kInfinity) != kInfinity;
  return static_cast<uint16_t>((bits + finite * (0x7fffu + (bits >> 16 & 1))) >> 16);
}

}  // namespace

int64_t encode_halves(const float* values, bool bfloat16, int64_t begin, int64_t end, uint16_t* bits) noexcept {
  const uint16_t infinity = bfloat16 ? 0x7f80 : 0x7c00;
  for (int64_t i = begin; i < end; i += kStrip) {
    const int64_t stop = std::min(end, i + kStrip);
    uint16_t over = 0;
    if (bfloat16) {
      for (int64_t j = i; j < stop; ++j) bits[j] = to_bfloat16(values[j]);
    } else {
      for (int64_t j = i; j < stop; ++j) bits[j] = to_float16(values[j]);
    }
    for (int64_t j = i; j < stop; ++j) over = static_cast<uint16_t>(over | ((bits[j] & infinity) == infinity));
    if (!over) continue;
    for (int64_t j = i; j < stop; ++j) {
      if ((bits[j] & infinity) == infinity && (bits_of(values[j]) & kInfinity) != kInfinity) return j;
    }
  }
  return -1;
}

}  // namespace pumice::formats
