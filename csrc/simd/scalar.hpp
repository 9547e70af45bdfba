// The vocabulary at one lane: the readable definition of every word that kernels use.
//
// F32, I32  vectors of kLanes lanes         Codes  kLanes words of 32 bits of integer codes
// Dot       exact integer dot products of codes (unsigned bytes) and activations
#pragma once

#include <cstdint>
#include <cstring>

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kLanes = 1;
constexpr int kRegisters = 16;         // vectors that fit into registers
constexpr int kTilePanels = 1;       // panels of w that matmul_int takes together
template <int kBits, bool kTwoDigits>
constexpr int kTileRows = 1;         // rows of x that it takes together
constexpr int kWideRows = 0;         // the same of large batches, on widened codes; 0: they are not widened
template <int kBits>
constexpr int kOffset = 0;           // Dot takes code - kOffset, 0 or 128: a signed byte where the ISA has no products of others

using F32 = float;
using I32 = int32_t;
using Codes = uint32_t;

inline F32 zero_f32() { return 0.0f; }
inline F32 set_f32(float v) { return v; }
inline F32 load_f32(const float* p) { return *p; }
inline void store_f32(float* p, F32 v) { *p = v; }
inline F32 add(F32 a, F32 b) { return a + b; }
inline F32 sub(F32 a, F32 b) { return a - b; }
inline F32 mul(F32 a, F32 b) { return a * b; }
inline F32 div(F32 a, F32 b) { return a / b; }
// b where either is NaN.
inline F32 smaller(F32 a, F32 b) { return a < b ? a : b; }
inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }
inline float least_lane(F32 v) { return v; }  // without NaN, and zeros of either sign being equal
inline float most_lane(F32 v) { return v; }
inline F32 muladd(F32 a, F32 b, F32 c) { return a * b + c; }  // fused where the ISA fuses: float modes only
// The larger of m and |v|, m >= 0: by their bits, so that infinity is larger than all numbers, and a NaN larger than that.
inline F32 max_abs(F32 m, F32 v) {
  uint32_t most, other;
  std::memcpy(&most, &m, 4);
  std::memcpy(&other, &v, 4);
  other &= 0x7fffffffu;
  if (other > most) most = other;
  std::memcpy(&m, &most, 4);
  return m;
}
inline float max_lane(F32 v) { return v; }  // likewise
inline float sum_lanes(F32 v) { return v; }
// Lane i is p[i % kCount], and p[i * kCount / kLanes]; kCount divides kLanes.
template <int kCount>
inline F32 repeat_f32(const float* p) { return *p; }
template <int kCount>
inline F32 spread_f32(const float* p) { return *p; }
// Lane j of v[i] changes places with lane i of v[j].
inline void transpose(F32 (&)[kLanes]) {}

inline I32 zero_i32() { return 0; }
inline I32 set_i32(int32_t v) { return v; }
inline I32 add(I32 a, I32 b) { return static_cast<I32>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }  // modulo 2^32
inline I32 sub(I32 a, I32 b) { return static_cast<I32>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
inline I32 mul(I32 a, I32 b) { return a * b; }
inline I32 load_i32(const int32_t* p) { return *p; }
inline void store_i32(int32_t* p, I32 v) { *p = v; }
inline F32 to_f32(I32 v) { return static_cast<float>(v); }
inline I32 load_u8(const uint8_t* p) { return *p; }

// acc + a[0] * w[0] + a[1] * w[1] in each lane, for lanes of two int16 activations and a pair of int16 weights in one word
inline I32 muladd_pairs(const int16_t* a, int32_t w, I32 acc) {
  return acc + a[0] * static_cast<int16_t>(w) + a[1] * static_cast<int16_t>(w >> 16);
}

// Four floats, on every ISA.
struct Four {
  float v[4];
};
inline Four zero_four() { return {}; }
inline Four load_four(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline Four set_four(const float* a, const float* b, const float* c, const float* d) { return {{*a, *b, *c, *d}}; }
inline Four add(Four a, Four b) { return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
inline Four muladd(Four a, Four b, Four c) {
  return {{a.v[0] * b.v[0] + c.v[0], a.v[1] * b.v[1] + c.v[1], a.v[2] * b.v[2] + c.v[2], a.v[3] * b.v[3] + c.v[3]}};
}
inline float sum_four(Four v) { return (v.v[0] + v.v[2]) + (v.v[1] + v.v[3]); }

// Rounds to an integer, half to even; |v| <= 16256.
inline void store_rounded_i16(int16_t* p, F32 v) {
  const float shifted = v + 12582912.0f;  // 1.5 * 2^23: the sum has no room for a fraction
  *p = static_cast<int16_t>(shifted - 12582912.0f);
}

// Whole numbers from 0 to 255.
inline void store_u8(uint8_t* p, F32 v) { *p = static_cast<uint8_t>(static_cast<int>(v)); }

// F64: vectors of as many bytes.
using F64 = double;
inline F64 set_f64(double v) { return v; }
inline F64 load_f64(const double* p) { return *p; }
inline void store_f64(double* p, F64 v) { *p = v; }
inline F64 muladd(F64 a, F64 b, F64 c) { return a * b + c; }

// A sum of squares in each lane: exact products, so fused or not the bits are the same.
using Squares = double;
inline Squares zero_squares() { return 0.0; }
inline void add_squares(Squares& sums, F32 v) { sums += static_cast<double>(v) * static_cast<double>(v); }
inline void store_squares(double* p, Squares sums) { *p = sums; }

inline Codes load_codes(const uint8_t* p) {
  Codes v;
  std::memcpy(&v, p, 4);
  return v;
}
// Codes that are loaded once, and not again for each use. For loops that are bound by loads.
inline Codes once(Codes codes) { return codes; }
inline void store_codes(uint8_t* p, Codes v) { std::memcpy(p, &v, 4); }
inline Codes flip(Codes v, uint32_t mask) { return v ^ mask; }
// 64 / (4 * kLanes) Codes of bytes: those of `data`, of kBits bits, at the places of the mask's bits, in order; the code of 0
// elsewhere. Reads up to 64 bytes.
template <int kBits>
inline void expand_codes(const uint8_t* data, uint64_t mask, Codes* out) {
  int at = 0;
  for (int word = 0; word < 16; ++word) {
    out[word] = 0;
    for (int i = 0; i < 32; i += 8, mask >>= 1) {
      uint32_t code = 1u << (kBits - 1);
      if (mask & 1) {
        code = kBits == 8 ? data[at] : data[at / 2] >> (at % 2 * 4) & 15u;
        ++at;
      }
      out[word] |= code << i;
    }
  }
}
// Codes of kBits bits, 2, 4 or 8, one a byte: those at place `part` of each byte.
template <int kBits>
inline Codes bytes_of(Codes v, int part) {
  return kBits == 8 ? v : (v >> (kBits * part)) & (kBits == 4 ? 0x0F0F0F0Fu : 0x03030303u);
}
// low | the kHigh bits of step `step` of a word of high bits, as the bits kLow and up of each byte.
template <int kLow, int kHigh>
inline Codes with_high(Codes low, Codes high, int step) {
  constexpr uint32_t kMask = 0x01010101u * (((1u << kHigh) - 1) << kLow);
  const int shift = kHigh * step - kLow;
  return low | ((shift < 0 ? high << -shift : high >> shift) & kMask);
}
// Code i of each word as a number.
template <int kBits>
inline I32 code_at(Codes v, int i) {
  return static_cast<I32>((v >> (kBits * i)) & ((1u << kBits) - 1));
}

inline F32 load_half(const uint16_t* p) {  // float16 -> float32, exactly
  const uint32_t sign = static_cast<uint32_t>(*p & 0x8000) << 16;
  uint32_t bits = static_cast<uint32_t>(*p & 0x7fff) << 13;
  if ((bits & 0x0f800000u) == 0x0f800000u) {
    bits += 0x70000000u;  // infinity or NaN: the largest exponent of either type
  } else if (bits & 0x0f800000u) {
    bits += 0x38000000u;  // the exponent is biased by 127 instead of 15
  } else {
    float v = static_cast<float>(*p & 0x3ff) * 5.9604644775390625e-8f;  // subnormal: multiples of 2^-24
    std::memcpy(&bits, &v, 4);
  }
  bits |= sign;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline F32 load_bfloat16(const uint16_t* p) {
  const uint32_t bits = static_cast<uint32_t>(*p) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// Some of the lanes, by the bits of a number.
using Lanes = bool;
inline Lanes lanes_of(uint32_t bits) { return bits != 0; }
inline F32 expand(F32 v, Lanes lanes) { return lanes ? v : 0.0f; }  // the first lanes of v, one after the other, in these
inline F32 muladd_where(Lanes lanes, F32 a, F32 b, F32 c) { return lanes ? a * b + c : c; }

// Into the first cache; and into the second, which leaves the few misses that the first can wait for to what is read now.
inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}

// A sum of codes of kBits bits times activations of one or two digits, in each lane. `Digits` are the four activations that
// meet a lane of codes, in kPlanes planes: with kByteDigits the int8 digits hi and lo (a = 128 * hi + lo), or one; else
// the int16 pairs (a0, a2) and (a1, a3). If kFlush is not 0, `flush` must be called every kFlush
// steps, which empties the sums into Wide, kept apart so that the registers are for the sums. Dot products work in
// kRegisters vectors of sums. Where kWideRows is not 0 a Dot also has
//
// widened(codes, plane)  the codes that meet a plane of activations, as add_wide takes them
// quad(p), add_wide(c, quad)
// add_pinned             add, in instructions that GCC does not rearrange: with many sums its own order spills them
template <int kBits, bool kTwoDigits>
struct Dot {
  static constexpr bool kByteDigits = false;
  static constexpr int kFlush = 0;
  struct Digits {
    int16_t even[2], odd[2];
  };
  struct Wide {};
  I32 sum;
  static constexpr int kPlanes = 2, kRegisters = 1;
  static Digits load(const uint8_t* even, const uint8_t* odd) {
    Digits a;
    std::memcpy(a.even, even, 4);
    std::memcpy(a.odd, odd, 4);
    return a;
  }
  void start(I32 v, Wide&) { sum = v; }
  void add(Codes c, const Digits& a) {
    sum += static_cast<int32_t>(c & 255) * a.even[0] + static_cast<int32_t>(c >> 8 & 255) * a.odd[0] +
           static_cast<int32_t>(c >> 16 & 255) * a.even[1] + static_cast<int32_t>(c >> 24) * a.odd[1];
  }
  void flush(Wide&) {}
  I32 total(const Wide&) const { return sum; }
};

// The same for int8 weights as they rest. Lanes are activations, whose quads lie side by side in planes that are `plane` bytes
// apart, and meet the same 4 weights (load, broadcast_weights); or they are rows of weights, which meet the same 4 activations
// (broadcast, load_weights). Byte digits are raised by 128 where the ISA multiplies unsigned bytes by signed ones.
template <bool kTwoDigits>
struct SignedDot {
  static constexpr int kPlanes = 2, kRegisters = 1;
  struct Activations {
    int16_t even[2], odd[2];
  };
  struct Weights {
    int8_t bytes[4];
  };
  I32 sum;
  static Activations load(const uint8_t* p, int64_t plane) {
    Activations a;
    std::memcpy(a.even, p, 4);
    std::memcpy(a.odd, p + plane, 4);
    return a;
  }
  static Activations broadcast(const uint8_t* p, int64_t plane) { return load(p, plane); }
  static Weights load_weights(const uint8_t* p) {
    Weights w;
    std::memcpy(w.bytes, p, 4);
    return w;
  }
  static Weights broadcast_weights(const uint8_t* p) { return load_weights(p); }
  void start(I32 v) { sum = v; }
  void add(const Activations& a, const Weights& w) {
    sum += w.bytes[0] * a.even[0] + w.bytes[1] * a.odd[0] + w.bytes[2] * a.even[1] + w.bytes[3] * a.odd[1];
  }
  I32 total() const { return sum; }
};

// kCount quads of activations, each in as many lanes.
template <int kCount>
inline uint32_t spread_quads(const uint32_t* p) { return *p; }
// sum + the 4 signed bytes of each lane
inline I32 add_bytes(I32 sum, Codes v) {
  int8_t bytes[4];
  std::memcpy(bytes, &v, 4);
  return sum + bytes[0] + bytes[1] + bytes[2] + bytes[3];
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
