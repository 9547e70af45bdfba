// Activations: float32 rows -> int16 codes with one scale per block of 128 columns, then the order that the dense
// kernels read. The arithmetic is fixed to the bit (docs/formats.md, "Activations").
#pragma once

#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// One whole block: codes rint(x * inv), half to even. Returns false if x holds a NaN or an infinity.
inline bool quantize_block(const float* x, float limit, int16_t* codes, float* scale) {
  F32 largest = zero_f32(), poison = zero_f32();
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    const F32 v = load_f32(x + i);
    largest = max_abs(largest, v);
    poison = add(poison, mul(v, zero_f32()));  // 0 for finite numbers, NaN for all others
  }
  if (!(sum_lanes(poison) == 0.0f)) return false;
  const float am = max_lane(largest);
  const bool tiny = am < 0x1p-100f;  // its inverse might overflow
  *scale = tiny ? 0.0f : am / limit;
  const F32 inverse = set_f32(tiny ? 0.0f : limit / am);
  for (int64_t i = 0; i < kBlock; i += kLanes) store_rounded_i16(codes + i, mul(load_f32(x + i), inverse));
  return true;
}

void quantize_row(const float* x, int64_t cols, bool two_digits, QuantizedRows a, int64_t row) {
  const float limit = two_digits ? 16256.0f : 127.0f;
  int16_t* codes = a.codes + row * a.padded;
  float* scales = a.scales + row * a.blocks;
  bool finite = true;
  for (int64_t block = 0; block < a.blocks && finite; ++block) {
    const int64_t k = block * kBlock, count = cols - k < kBlock ? cols - k : kBlock;
    if (count == kBlock) {
      finite = quantize_block(x + k, limit, codes + k, scales + block);
    } else {
      float ragged[kBlock] = {};
      for (int64_t i = 0; i < count; ++i) ragged[i] = x[k + i];
      finite = quantize_block(ragged, limit, codes + k, scales + block);
    }
  }
  a.finite[row] = finite;
  if (finite) return;
  for (int64_t i = 0; i < a.padded; ++i) codes[i] = 0;
  for (int64_t block = 0; block < a.blocks; ++block) scales[block] = 0.0f;
}

// Quads of one block in the order [parity][word]: parity p of word w holds the columns w*4*P + p + P*i, i = 0..3,
// where P = 8 / bits codes share a byte.
template <int kBits, bool kTwoDigits>
inline void spread_block(const int16_t* a, uint8_t* even, uint8_t* odd) {
  constexpr int kPerByte = 8 / kBits, kWords = kBlock / (4 * kPerByte);
  for (int part = 0; part < kPerByte; ++part) {
    for (int word = 0; word < kWords; ++word) {
      const int16_t* from = a + word * 4 * kPerByte + part;
      uint8_t* e = even + (part * kWords + word) * 4;
      uint8_t* o = odd + (part * kWords + word) * 4;
      if (!kByteDigits) {
        const int16_t pairs[4] = {from[0], from[2 * kPerByte], from[kPerByte], from[3 * kPerByte]};
        std::memcpy(e, pairs, 4);
        std::memcpy(o, pairs + 2, 4);
        continue;
      }
      for (int i = 0; i < 4; ++i) {
        const int code = from[i * kPerByte];
        const int hi = kTwoDigits ? (code + 64) >> 7 : code;
        e[i] = static_cast<uint8_t>(hi);
        o[i] = static_cast<uint8_t>(code - 128 * hi);
      }
    }
  }
}

template <int kBits, bool kTwoDigits>
inline void spread(QuantizedRows a, int64_t row) {
  for (int64_t k = row * a.padded; k < (row + 1) * a.padded; k += kBlock) {
    spread_block<kBits, kTwoDigits>(a.codes + k, a.even + k, a.odd + k);
  }
}

void spread_row(QuantizedRows a, int64_t row, int bits, int64_t segment, bool two_digits) {
  if (bits == 8) {
    two_digits ? spread<8, true>(a, row) : spread<8, false>(a, row);
  } else {
    two_digits ? spread<4, true>(a, row) : spread<4, false>(a, row);
  }
  for (int64_t i = 0; i < a.segments; ++i) {
    int32_t sum = 0;
    for (int64_t k = 0; k < segment; ++k) sum += a.codes[row * a.padded + i * segment + k];
    a.sums[row * a.segments + i] = sum;
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
