// float16 and bfloat16: to and from float32, rounded half to even. Portable C++; the definition is docs/formats.md.
#pragma once

#include <cstdint>

namespace pumice::formats {

// Values [begin, end). Returns the index of the first finite value that rounds to infinity, or -1.
int64_t encode_halves(const float* values, bool bfloat16, int64_t begin, int64_t end, uint16_t* bits) noexcept;
void decode_halves(const uint16_t* bits, bool bfloat16, int64_t begin, int64_t end, float* values) noexcept;

}  // namespace pumice::formats
