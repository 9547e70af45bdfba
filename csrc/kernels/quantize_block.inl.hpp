// One block of activations: float32 -> int16 codes and their scale, fixed to the bit (docs/formats.md, "Activations").
#pragma once

#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr float kTwoDigitLimit = 16256.0f, kOneDigitLimit = 127.0f;

// One whole block: codes rint(x * inv), half to even. Returns false if x holds a NaN or an infinity.
inline bool quantize_block(const float* x, float limit, int16_t* codes, float* scale) {
  F32 largest = zero_f32();
  for (int64_t i = 0; i < kBlock; i += kLanes) largest = max_abs(largest, load_f32(x + i));
  const float am = max_lane(largest);
  if (!(am <= 0x1.fffffep127f)) return false;
  const bool tiny = am < 0x1p-100f;  // its inverse might overflow
  *scale = tiny ? 0.0f : am / limit;
  const F32 inverse = set_f32(tiny ? 0.0f : limit / am);
  for (int64_t i = 0; i < kBlock; i += kLanes) store_rounded_i16(codes + i, mul(load_f32(x + i), inverse));
  return true;
}

inline int32_t sum_codes(const int16_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += codes[i];
  return sum;
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
