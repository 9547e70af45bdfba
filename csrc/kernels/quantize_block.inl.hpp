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

// The same of a block of `width` columns; what is behind them counts as 0.
inline bool quantize_columns(const float* x, int64_t width, float limit, int16_t* codes, float* scale) {
  if (width >= kBlock) return quantize_block(x, limit, codes, scale);
  float ragged[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) ragged[i] = i < width ? x[i] : 0.0f;
  return quantize_block(ragged, limit, codes, scale);
}

// The codes of one block of one row of a tile, and their scale: all 0 if it is not finite, which is noted.
template <bool kTwoDigits>
inline float quantize_tile_row(const float* x, int64_t cols, const QuantizedTiles& a, int64_t row, int64_t block, int16_t* codes) {
  const int64_t k = block * kBlock;
  float scale;
  if (quantize_columns(x + row * cols + k, cols - k, kTwoDigits ? kTwoDigitLimit : kOneDigitLimit, codes, &scale)) return scale;
  for (int64_t i = 0; i < kBlock; ++i) codes[i] = 0;
  __atomic_store_n(a.finite + row, uint8_t{0}, __ATOMIC_RELAXED);  // other threads may see other blocks of the row
  return 0.0f;
}

inline int32_t sum_codes(const int16_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += codes[i];
  return sum;
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
