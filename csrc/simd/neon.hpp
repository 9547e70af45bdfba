// The vocabulary for arm64 with the dot products of Armv8.2: see scalar.hpp for what each word means.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "simd/places.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
constexpr int kTilePanels = 1;
// As many sums as there are registers for, beside 4 vectors of codes, of their high bits (3, 5 and 6 bits) and of bytes.
template <int kBits, bool kTwoDigits>
constexpr int kTileRows = (kBits == 8 ? 5 : kBits % 2 || kBits == 6 ? 2 : 4) / (kTwoDigits ? 2 : 1);
constexpr int kWideRows = 0;
// sdot multiplies signed bytes only (usdot is Armv8.6). Codes of fewer than 8 bits are such bytes as they are.
template <int kBits>
constexpr int kOffset = kBits == 8 ? 128 : 0;

using F32 = float32x4_t;
using I32 = int32x4_t;
using Codes = uint32x4_t;

inline F32 zero_f32() { return vdupq_n_f32(0.0f); }
inline F32 set_f32(float v) { return vdupq_n_f32(v); }
inline F32 load_f32(const float* p) { return vld1q_f32(p); }
inline void store_f32(float* p, F32 v) { vst1q_f32(p, v); }
inline F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
inline F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
inline F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
inline F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
// vminq and vmaxq would give NaN.
inline F32 smaller(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F32 larger(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float least_lane(F32 v) { return vminvq_f32(v); }
inline float most_lane(F32 v) { return vmaxvq_f32(v); }
inline F32 muladd(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
inline F32 max_abs(F32 m, F32 v) {
  return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(m), vreinterpretq_u32_f32(vabsq_f32(v))));
}
inline float max_lane(F32 v) {
  const uint32_t bits = vmaxvq_u32(vreinterpretq_u32_f32(v));
  float most;
  std::memcpy(&most, &bits, 4);
  return most;
}
inline float sum_lanes(F32 v) { return vaddvq_f32(v); }
template <int kCount>
inline F32 repeat_f32(const float* p) {
  return kCount == 1 ? vdupq_n_f32(*p) : vld1q_f32(p);
}
template <int kCount>
inline F32 spread_f32(const float* p) {
  return vdupq_n_f32(*p);
}
inline void transpose(F32 (&v)[kLanes]) {
  const float32x4x2_t a = vtrnq_f32(v[0], v[1]), b = vtrnq_f32(v[2], v[3]);
  v[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  v[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  v[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  v[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

inline I32 zero_i32() { return vdupq_n_s32(0); }
inline I32 set_i32(int32_t v) { return vdupq_n_s32(v); }
inline I32 add(I32 a, I32 b) { return vaddq_s32(a, b); }
inline I32 sub(I32 a, I32 b) { return vsubq_s32(a, b); }
inline I32 mul(I32 a, I32 b) { return vmulq_s32(a, b); }
template <int kBy>
inline I32 shift_left(I32 v) {
  return vshlq_n_s32(v, kBy);
}
inline I32 load_i32(const int32_t* p) { return vld1q_s32(p); }
inline void store_i32(int32_t* p, I32 v) { vst1q_s32(p, v); }
inline F32 to_f32(I32 v) { return vcvtq_f32_s32(v); }
inline I32 load_u8(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, 4);
  const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}
inline I32 muladd_pairs(const int16_t* a, int32_t w, I32 acc) {
  const int16x8_t pairs = vld1q_s16(a), twice = vreinterpretq_s16_s32(vdupq_n_s32(w));
  const int32x4_t low = vmull_s16(vget_low_s16(pairs), vget_low_s16(twice));
  return vaddq_s32(acc, vpaddq_s32(low, vmull_high_s16(pairs, twice)));
}

struct Four {
  float32x4_t v;
};
inline Four zero_four() { return {vdupq_n_f32(0.0f)}; }
inline Four load_four(const float* p) { return {vld1q_f32(p)}; }
inline Four set_four(const float* a, const float* b, const float* c, const float* d) {
  const float32x4_t ab = vld1q_lane_f32(b, vld1q_dup_f32(a), 1);
  return {vld1q_lane_f32(d, vld1q_lane_f32(c, ab, 2), 3)};
}
inline Four add(Four a, Four b) { return {vaddq_f32(a.v, b.v)}; }
inline Four muladd(Four a, Four b, Four c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline float sum_four(Four v) { return vaddvq_f32(v.v); }

inline void store_rounded_i16(int16_t* p, F32 v) { vst1_s16(p, vmovn_s32(vcvtnq_s32_f32(v))); }

inline void store_u8(uint8_t* p, F32 v) {
  const uint16x4_t pairs = vmovn_u32(vcvtq_u32_f32(v));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(pairs, pairs))), 0);
  std::memcpy(p, &four, 4);
}

using F64 = float64x2_t;
inline F64 set_f64(double v) { return vdupq_n_f64(v); }
inline F64 load_f64(const double* p) { return vld1q_f64(p); }
inline void store_f64(double* p, F64 v) { vst1q_f64(p, v); }
inline F64 muladd(F64 a, F64 b, F64 c) { return vfmaq_f64(c, a, b); }

struct Squares {
  float64x2_t low, high;
};
inline Squares zero_squares() { return {vdupq_n_f64(0.0), vdupq_n_f64(0.0)}; }
inline void add_squares(Squares& sums, F32 v) {
  const float64x2_t low = vcvt_f64_f32(vget_low_f32(v)), high = vcvt_high_f64_f32(v);
  sums = {vfmaq_f64(sums.low, low, low), vfmaq_f64(sums.high, high, high)};
}
inline void store_squares(double* p, Squares sums) {
  vst1q_f64(p, sums.low);
  vst1q_f64(p + 2, sums.high);
}

inline Codes load_codes(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
// See avx512.hpp.
inline Codes once(Codes codes) {
  asm("" : "+w"(codes));
  return codes;
}
inline void store_codes(uint8_t* p, Codes v) { vst1q_u8(p, vreinterpretq_u8_u32(v)); }
template <int kBits>
inline void expand_codes(const uint8_t* data, uint64_t mask, Codes* out) {
  uint8_t wide[64];
  if constexpr (kBits == 4) {
    const uint8x16x2_t packed = {{vld1q_u8(data), vld1q_u8(data + 16)}};
    for (int i = 0; i < 2; ++i) {
      const uint8x16_t low = vandq_u8(packed.val[i], vdupq_n_u8(15)), high = vshrq_n_u8(packed.val[i], 4);
      vst1q_u8(wide + 32 * i, vzip1q_u8(low, high));
      vst1q_u8(wide + 32 * i + 16, vzip2q_u8(low, high));
    }
    data = wide;
  }
  for (int i = 0; i < 4; ++i, mask >>= 16) {
    const auto low = static_cast<uint32_t>(mask & 255), high = static_cast<uint32_t>(mask >> 8 & 255);
    const uint8_t* second = data + __builtin_popcount(low);
    const uint8x16_t rank = vaddq_u8(vcombine_u8(vld1_u8(kPlaces.rank[low]), vld1_u8(kPlaces.rank[high])),
                                     vcombine_u8(vdup_n_u8(0), vdup_n_u8(8)));
    const uint8x16_t bytes = vqtbl1q_u8(vcombine_u8(vld1_u8(data), vld1_u8(second)), rank);
    const uint8x16_t holes = vcgeq_u8(rank, vdupq_n_u8(0x80));
    out[i] = vreinterpretq_u32_u8(vbslq_u8(holes, vdupq_n_u8(1 << (kBits - 1)), bytes));
    data = second + __builtin_popcount(high);
  }
}
inline Codes flip(Codes v, uint32_t mask) { return veorq_u32(v, vdupq_n_u32(mask)); }
// Shifts as operators: the intrinsics with a constant take none that is a function's argument.
template <int kBits>
inline Codes bytes_of(Codes v, int part) {
  if (kBits == 8) return v;
  const uint8x16_t moved = vreinterpretq_u8_u32(v) >> static_cast<uint8_t>(kBits * part);
  if (kBits * (part + 1) == 8) return vreinterpretq_u32_u8(moved);
  return vreinterpretq_u32_u8(vandq_u8(moved, vdupq_n_u8(kBits == 4 ? 15 : 3)));
}
template <int kLow, int kHigh>
inline Codes with_high(Codes low, Codes high, int step) {
  const int shift = kHigh * step - kLow;
  const Codes moved = shift < 0 ? high << static_cast<uint32_t>(-shift) : high >> static_cast<uint32_t>(shift);
  return vorrq_u32(low, vandq_u32(moved, vreinterpretq_u32_u8(vdupq_n_u8(((1 << kHigh) - 1) << kLow))));
}
template <int kBits>
inline I32 code_at(Codes v, int i) {
  const Codes moved = v >> static_cast<uint32_t>(kBits * i);
  return vreinterpretq_s32_u32(vandq_u32(moved, vdupq_n_u32((1u << kBits) - 1)));
}

inline F32 load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F32 load_bfloat16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

struct Lanes {
  uint8x16_t bytes;  // of the vector that go to each lane, 16 and up where it is not meant
};
inline Lanes lanes_of(uint32_t bits) {
  uint32_t four;
  std::memcpy(&four, kPlaces.rank[bits], 4);
  const uint8x16_t rank = vreinterpretq_u8_u32(vdupq_n_u32(four));
  const uint8x16_t lane = vqtbl1q_u8(rank, (uint8x16_t){0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3});
  const uint8x16_t first = vqshlq_n_u8(lane, 2);  // saturated: a lane that is not meant stays far above 15
  return {vorrq_u8(first, (uint8x16_t){0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3})};
}
inline F32 expand(F32 v, Lanes lanes) {
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), lanes.bytes));
}
// a is 0 in the other lanes.
inline F32 muladd_where(Lanes lanes, F32 a, F32 b, F32 c) {
  const uint8x16_t meant = vcltq_u8(lanes.bytes, vdupq_n_u8(16));
  return vfmaq_f32(c, a, vreinterpretq_f32_u8(vandq_u8(vreinterpretq_u8_f32(b), meant)));
}

// Always inline: see avx512.hpp.
__attribute__((always_inline)) inline void prefetch(const void* p) { __builtin_prefetch(p); }
__attribute__((always_inline)) inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

using Quad = int8x8_t;  // 4 bytes of activations, twice; sdot takes the first
inline Quad broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return vreinterpret_s8_s32(vdup_n_s32(quad));
}
inline I32 dot_quads(I32 sum, Codes codes, Quad digits) {
  return vdotq_lane_s32(sum, vreinterpretq_s8_u32(codes), digits, 0);
}
inline Codes broadcast_codes(const uint8_t* p) {
  uint32_t quad;
  std::memcpy(&quad, p, 4);
  return vdupq_n_u32(quad);
}
inline I32 dot_signed(I32 sum, Codes activations, Codes weights) {
  return vdotq_s32(sum, vreinterpretq_s8_u32(activations), vreinterpretq_s8_u32(weights));
}

template <int kCount>
inline Quad spread_quads(const uint32_t* p) {
  return broadcast_quad(reinterpret_cast<const uint8_t*>(p));
}
inline I32 add_bytes(I32 sum, Codes v) { return vdotq_s32(sum, vreinterpretq_s8_u32(v), vdupq_n_s8(1)); }

}  // namespace
}  // namespace pumice::PUMICE_ISA

#include "simd/byte_dot.hpp"
