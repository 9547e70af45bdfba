// The vocabulary for AVX-512 at the level of Ice Lake (VNNI, VBMI2): see scalar.hpp for what each word means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/sha256.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
// With 24 sums in registers: 12 rows of x, or 6 where each has two digits. Fewer for the widths that are rare: each number of
// rows is a function of its own.
constexpr int kTilePanels = 2;
template <int kBits, bool kTwoDigits>
constexpr int kTileRows = kBits != 4 && kBits != 8 ? 4 : kTwoDigits ? 6 : 12;
constexpr int kWideRows = 0;
template <int kBits>
constexpr int kOffset = 0;

using F32 = __m512;
struct I32 {
  __m512i v;
};
struct Codes {
  __m512i v;
};

inline F32 zero_f32() { return _mm512_setzero_ps(); }
inline F32 set_f32(float v) { return _mm512_set1_ps(v); }
inline F32 load_f32(const float* p) { return _mm512_loadu_ps(p); }
inline void store_f32(float* p, F32 v) { _mm512_storeu_ps(p, v); }
inline F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
inline F32 smaller(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 larger(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline float least_lane(F32 v) { return _mm512_reduce_min_ps(v); }
inline float most_lane(F32 v) { return _mm512_reduce_max_ps(v); }
inline F32 muladd(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 max_abs(F32 m, F32 v) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(m), _mm512_castps_si512(_mm512_abs_ps(v))));
}
inline float max_lane(F32 v) {
  const uint32_t bits = _mm512_reduce_max_epu32(_mm512_castps_si512(v));
  float most;
  std::memcpy(&most, &bits, 4);
  return most;
}
inline float sum_lanes(F32 v) { return _mm512_reduce_add_ps(v); }
template <int kCount>
inline F32 repeat_f32(const float* p) {
  if constexpr (kCount == 1) return _mm512_set1_ps(*p);
  if constexpr (kCount == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  if constexpr (kCount == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
  return _mm512_loadu_ps(p);
}
template <int kCount>
inline F32 spread_f32(const float* p) {
  if constexpr (kCount == 1) return _mm512_set1_ps(*p);
  if constexpr (kCount == 2) return _mm512_mask_broadcastss_ps(_mm512_set1_ps(p[0]), 0xFF00, _mm_load_ss(p + 1));
  const __m512i quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(quarter, _mm512_castps128_ps512(_mm_loadu_ps(p)));
}
inline void transpose(F32 (&v)[kLanes]) {
  F32 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // u[i + j]: columns j, j + 4, j + 8 and j + 12 of 4 rows
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {
    const F32 a = _mm512_shuffle_f32x4(u[j], u[j + 4], 0x88), b = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0x88);
    const F32 c = _mm512_shuffle_f32x4(u[j], u[j + 4], 0xDD), d = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0xDD);
    v[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    v[j + 8] = _mm512_shuffle_f32x4(a, b, 0xDD);
    v[j + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
    v[j + 12] = _mm512_shuffle_f32x4(c, d, 0xDD);
  }
}

inline I32 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32 set_i32(int32_t v) { return {_mm512_set1_epi32(v)}; }
inline I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
template <int kBy>
inline I32 shift_left(I32 v) {
  return {_mm512_slli_epi32(v.v, kBy)};
}
inline I32 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_i32(int32_t* p, I32 v) { _mm512_storeu_si512(p, v.v); }
inline F32 to_f32(I32 v) { return _mm512_cvtepi32_ps(v.v); }
inline I32 load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 muladd_pairs(const int16_t* a, int32_t w, I32 acc) {
  return {_mm512_dpwssd_epi32(acc.v, _mm512_loadu_si512(a), _mm512_set1_epi32(w))};
}

struct Four {
  __m128 v;
};
inline Four zero_four() { return {_mm_setzero_ps()}; }
inline Four load_four(const float* p) { return {_mm_loadu_ps(p)}; }
// Single loads: a gather takes longer on Zen 5.
inline Four set_four(const float* a, const float* b, const float* c, const float* d) { return {_mm_setr_ps(*a, *b, *c, *d)}; }
inline Four add(Four a, Four b) { return {_mm_add_ps(a.v, b.v)}; }
inline Four muladd(Four a, Four b, Four c) { return {_mm_fmadd_ps(a.v, b.v, c.v)}; }
inline float sum_four(Four v) {
  const __m128 s = _mm_add_ps(v.v, _mm_movehl_ps(v.v, v.v));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline void store_rounded_i16(int16_t* p, F32 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
}

inline void store_u8(uint8_t* p, F32 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
}

using F64 = __m512d;
inline F64 set_f64(double v) { return _mm512_set1_pd(v); }
inline F64 load_f64(const double* p) { return _mm512_loadu_pd(p); }
inline void store_f64(double* p, F64 v) { _mm512_storeu_pd(p, v); }
inline F64 muladd(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }

struct Squares {
  __m512d low, high;
};
inline Squares zero_squares() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
inline void add_squares(Squares& sums, F32 v) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  sums = {_mm512_fmadd_pd(low, low, sums.low), _mm512_fmadd_pd(high, high, sums.high)};
}
inline void store_squares(double* p, Squares sums) {
  _mm512_storeu_pd(p, sums.low);
  _mm512_storeu_pd(p + 8, sums.high);
}

inline Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
// GCC would load codes again for each use; the empty asm says that they may have changed.
inline Codes once(Codes codes) {
  asm("" : "+v"(codes.v));
  return codes;
}
inline void store_codes(uint8_t* p, Codes v) { _mm512_storeu_si512(p, v.v); }
// The register form of expand: that with a memory operand loads byte by byte on Zen 5, so the load is kept apart. Merged into
// holes, not zeroed: the zeroing form waits there for the last use of its register.
template <int kBits>
inline void expand_codes(const uint8_t* data, uint64_t mask, Codes* out) {
  __m512i bytes;
  if constexpr (kBits == 8) {
    bytes = once(load_codes(data)).v;
  } else {  // each byte twice as wide: its low half stays where it is, its high half moves to the upper byte
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
    bytes = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
  }
  *out = {_mm512_mask_expand_epi8(_mm512_set1_epi8(static_cast<char>(1 << (kBits - 1))), mask, bytes)};
}
inline Codes flip(Codes v, uint32_t mask) {
  return {_mm512_xor_si512(v.v, _mm512_set1_epi32(static_cast<int32_t>(mask)))};
}
template <int kBits>
inline Codes bytes_of(Codes v, int part) {
  if (kBits == 8) return v;
  const auto shift = static_cast<unsigned>(kBits * part);
  return {_mm512_and_si512(part ? _mm512_srli_epi32(v.v, shift) : v.v, _mm512_set1_epi8(kBits == 4 ? 15 : 3))};
}
template <int kLow, int kHigh>
inline Codes with_high(Codes low, Codes high, int step) {
  const int shift = kHigh * step - kLow;
  const __m512i moved = shift < 0 ? _mm512_slli_epi32(high.v, static_cast<unsigned>(-shift))
                                  : _mm512_srli_epi32(high.v, static_cast<unsigned>(shift));
  return {_mm512_or_si512(low.v, _mm512_and_si512(moved, _mm512_set1_epi8(((1 << kHigh) - 1) << kLow)))};
}
template <int kBits>
inline I32 code_at(Codes v, int i) {
  return {_mm512_and_si512(_mm512_srli_epi32(v.v, static_cast<unsigned>(kBits * i)),
                           _mm512_set1_epi32((1 << kBits) - 1))};
}

inline F32 load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32 load_bfloat16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

using Lanes = __mmask16;
inline Lanes lanes_of(uint32_t bits) { return static_cast<Lanes>(bits); }
inline F32 expand(F32 v, Lanes lanes) {  // see expand_codes
  asm("" : "+v"(v));
  return _mm512_mask_expand_ps(_mm512_setzero_ps(), lanes, v);
}
inline F32 muladd_where(Lanes lanes, F32 a, F32 b, F32 c) { return _mm512_mask3_fmadd_ps(a, b, c, lanes); }

// Always inline: GCC takes a function that only prefetches for one without effect and deletes the call.
__attribute__((always_inline)) inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
__attribute__((always_inline)) inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

using Quad = __m512i;  // 4 bytes of activations, the same in each lane
inline Quad broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return _mm512_set1_epi32(quad);
}
// As asm, because GCC 12 copies the sums of the intrinsic from register to register: two moves a product, and spills where
// all registers are in use. By value: an asm operand that is an element of an array keeps the array in memory.
inline I32 dot_quads(I32 sum, Codes codes, Quad digits) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(codes.v), "v"(digits));
  return sum;
}
inline Codes broadcast_codes(const uint8_t* p) { return {broadcast_quad(p)}; }
inline I32 dot_signed(I32 sum, Codes activations, Codes weights) { return dot_quads(sum, activations, weights.v); }
// kCount quads, each in as many lanes; 4 quads are read.
template <int kCount>
inline Quad spread_quads(const uint32_t* p) {
  const __m512i lanes = kCount == 2 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
                                    : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline I32 add_bytes(I32 sum, Codes v) { return dot_quads(sum, {_mm512_set1_epi8(1)}, v.v); }

}  // namespace
}  // namespace pumice::PUMICE_ISA

#include "simd/byte_dot.hpp"
