// The vocabulary for AVX2 + FMA + F16C without its Dot, for all ISAs with 256-bit registers: see scalar.hpp for what each word
// means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/places.hpp"
#include "simd/sha256.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
constexpr int kTilePanels = 1;

using F32 = __m256;
struct I32 {  // not the bare intrinsic type: Codes are the same one
  __m256i v;
};
struct Codes {
  __m256i v;
};

inline F32 zero_f32() { return _mm256_setzero_ps(); }
inline F32 set_f32(float v) { return _mm256_set1_ps(v); }
inline F32 load_f32(const float* p) { return _mm256_loadu_ps(p); }
inline void store_f32(float* p, F32 v) { _mm256_storeu_ps(p, v); }
inline F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
inline F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
inline F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
inline F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
inline F32 smaller(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 larger(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline float least_lane(F32 v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
inline float most_lane(F32 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline F32 muladd(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 max_abs(F32 m, F32 v) {
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(m), bits));
}
inline float max_lane(F32 v) {
  const __m256i bits = _mm256_castps_si256(v);
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, _MM_SHUFFLE(1, 0, 3, 2)));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, _MM_SHUFFLE(2, 3, 0, 1)));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}
inline float sum_lanes(F32 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
template <int kCount>
inline F32 repeat_f32(const float* p) {
  if constexpr (kCount == 1) return _mm256_set1_ps(*p);
  if constexpr (kCount == 4) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  return _mm256_loadu_ps(p);
}
template <int kCount>
inline F32 spread_f32(const float* p) {
  if constexpr (kCount == 1) return _mm256_set1_ps(*p);
  return _mm256_set_m128(_mm_set1_ps(p[1]), _mm_set1_ps(p[0]));
}
inline void transpose(F32 (&v)[kLanes]) {
  F32 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  F32 u[8];  // u[i]: column i in its low half, column i + 4 in its high one, of 4 rows
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

inline I32 zero_i32() { return {_mm256_setzero_si256()}; }
inline I32 set_i32(int32_t v) { return {_mm256_set1_epi32(v)}; }
inline I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I32 load_i32(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store_i32(int32_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.v); }
inline F32 to_f32(I32 v) { return _mm256_cvtepi32_ps(v.v); }
inline I32 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
// vpmaddwd of the sign-extended activation with (w, 0): the high half of each lane meets 0
inline I32 muladd_pairs(const int16_t* a, int32_t w, I32 acc) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi32(w)))};
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
  const __m256i wide = _mm256_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}

inline void store_u8(uint8_t* p, F32 v) {
  const __m256i whole = _mm256_cvttps_epi32(v);
  const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(pairs, pairs));
}

using F64 = __m256d;
inline F64 set_f64(double v) { return _mm256_set1_pd(v); }
inline F64 load_f64(const double* p) { return _mm256_loadu_pd(p); }
inline void store_f64(double* p, F64 v) { _mm256_storeu_pd(p, v); }
inline F64 muladd(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }

struct Squares {
  __m256d low, high;
};
inline Squares zero_squares() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
inline void add_squares(Squares& sums, F32 v) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
  sums = {_mm256_fmadd_pd(low, low, sums.low), _mm256_fmadd_pd(high, high, sums.high)};
}
inline void store_squares(double* p, Squares sums) {
  _mm256_storeu_pd(p, sums.low);
  _mm256_storeu_pd(p + 4, sums.high);
}

inline Codes load_codes(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline Codes once(Codes codes) { return codes; }  // there are no registers to keep them in
inline void store_codes(uint8_t* p, Codes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.v); }
// 16 of the bytes at `data`, at the places of the mask's bits.
inline __m128i expand_half(const uint8_t* data, unsigned mask, __m128i hole) {
  const auto pair = [](const void* low, const void* high) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64(static_cast<const __m128i*>(low)),
                              _mm_loadl_epi64(static_cast<const __m128i*>(high)));
  };
  const unsigned low = mask & 255, high = mask >> 8;
  const __m128i rank = _mm_add_epi8(pair(kPlaces.rank[low], kPlaces.rank[high]), _mm_set_epi64x(0x0808080808080808, 0));
  const __m128i bytes = pair(data, data + __builtin_popcount(low));
  return _mm_blendv_epi8(_mm_shuffle_epi8(bytes, rank), hole, rank);
}
template <int kBits>
inline void expand_codes(const uint8_t* data, uint64_t mask, Codes* out) {
  alignas(32) uint8_t wide[64];
  if constexpr (kBits == 4) {
    for (int i = 0; i < 64; i += 32) {
      const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + i / 2)));
      const __m256i bytes = _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(15));
      _mm256_store_si256(reinterpret_cast<__m256i*>(wide + i), bytes);
    }
    data = wide;
  }
  const __m128i hole = _mm_set1_epi8(static_cast<char>(1 << (kBits - 1)));
  for (int i = 0; i < 2; ++i) {
    const auto bits = static_cast<uint32_t>(mask >> (32 * i));
    const __m128i low = expand_half(data, bits & 0xFFFF, hole);
    data += __builtin_popcount(bits & 0xFFFF);
    out[i] = {_mm256_set_m128i(expand_half(data, bits >> 16, hole), low)};
    data += __builtin_popcount(bits >> 16);
  }
}
inline Codes flip(Codes v, uint32_t mask) {
  return {_mm256_xor_si256(v.v, _mm256_set1_epi32(static_cast<int32_t>(mask)))};
}
template <int kBits>
inline Codes bytes_of(Codes v, int part) {
  if (kBits == 8) return v;
  const __m256i mask = _mm256_set1_epi8(kBits == 4 ? 15 : 3);
  return {_mm256_and_si256(part ? _mm256_srli_epi32(v.v, kBits * part) : v.v, mask)};
}
template <int kLow, int kHigh>
inline Codes with_high(Codes low, Codes high, int step) {
  const int shift = kHigh * step - kLow;
  const __m256i moved = shift < 0 ? _mm256_slli_epi32(high.v, -shift) : _mm256_srli_epi32(high.v, shift);
  return {_mm256_or_si256(low.v, _mm256_and_si256(moved, _mm256_set1_epi8(((1 << kHigh) - 1) << kLow)))};
}
template <int kBits>
inline I32 code_at(Codes v, int i) {
  return {_mm256_and_si256(_mm256_srli_epi32(v.v, kBits * i), _mm256_set1_epi32((1 << kBits) - 1))};
}

inline F32 load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load_bfloat16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

struct Lanes {
  __m256i rank;  // of each lane, negative where it is not meant
};
inline Lanes lanes_of(uint32_t bits) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.rank[bits])))};
}
inline F32 only(F32 v, Lanes lanes) {
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(lanes.rank, 31)), v);
}
inline F32 expand(F32 v, Lanes lanes) { return only(_mm256_permutevar8x32_ps(v, lanes.rank), lanes); }
// a is 0 in the other lanes.
inline F32 muladd_where(Lanes lanes, F32 a, F32 b, F32 c) { return muladd(a, only(b, lanes), c); }

// Always inline: GCC takes a function that only prefetches for one without effect and deletes the call.
__attribute__((always_inline)) inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
__attribute__((always_inline)) inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

using Quad = __m256i;  // 4 bytes of activations, the same in each lane
inline Quad broadcast_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return _mm256_set1_epi32(quad);
}
inline Codes broadcast_codes(const uint8_t* p) { return {broadcast_quad(p)}; }
// kCount of them, each in as many lanes; 2 quads are read.
template <int kCount>
inline Quad spread_quads(const uint32_t* p) {
  return _mm256_set_m128i(_mm_set1_epi32(static_cast<int32_t>(p[1])), _mm_set1_epi32(static_cast<int32_t>(p[0])));
}

inline I32 add_bytes(I32 sum, Codes v) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v.v);
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
