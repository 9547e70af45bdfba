// float16 and bfloat16: to and from float32, rounded half to even. Portable C++; the definition is docs/formats.md. Kernels
// have wider ways back (widen_half). Of internal linkage, since kernels include this.
#pragma once

#include <cstdint>
#include <cstring>

namespace pumice::formats {

// Values [begin, end). Returns the index of the first finite value that rounds to infinity, or -1.
int64_t encode_halves(const float* values, bool bfloat16, int64_t begin, int64_t end, uint16_t* bits) noexcept;

static inline uint32_t bits_of(float v) noexcept {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

static inline float float_of(uint32_t bits) noexcept {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

static inline float from_bfloat16(uint16_t bits) noexcept { return float_of(static_cast<uint32_t>(bits) << 16); }

static inline float from_float16(uint16_t bits) noexcept {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t size = bits_of(float_of(static_cast<uint32_t>(bits & 0x7fff) << 13) * 0x1p112f);  // exact, subnormals too
  size |= size >= 0x47800000u ? 0x7f800000u : 0;  // the largest exponent: infinity and NaN
  return float_of(sign | size);
}

}  // namespace pumice::formats
