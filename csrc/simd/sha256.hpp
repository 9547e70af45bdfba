// SHA-256 by the instructions that x86 processors have for it, whatever their vectors (Zen, Goldmont, Ice Lake and later): words of
// FIPS 180-4. An ISA with PUMICE_SHA256 has them where `cpu_has_sha256` says so.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define PUMICE_SHA256

namespace pumice::PUMICE_ISA {
namespace {

using ShaWords = __m128i;  // 4 of them
struct ShaState {
  __m128i abef, cdgh;
};

inline ShaState sha_state(const uint32_t* h) {
  const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(h)), hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(h + 4));
  const __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1), efgh = _mm_shuffle_epi32(hgfe, 0x1B);
  return {_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xF0)};
}
inline void store_sha_state(uint32_t* h, ShaState s) {
  const __m128i feba = _mm_shuffle_epi32(s.abef, 0x1B), dchg = _mm_shuffle_epi32(s.cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(h), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(h + 4), _mm_alignr_epi8(dchg, feba, 8));
}
inline ShaState add(ShaState a, ShaState b) { return {_mm_add_epi32(a.abef, b.abef), _mm_add_epi32(a.cdgh, b.cdgh)}; }
inline ShaWords load_sha_words(const uint8_t* p) {  // big-endian
  const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), order);
}
// Four rounds with these words of the schedule.
inline ShaState sha_rounds(ShaState s, ShaWords w, const uint32_t* constants) {
  const __m128i sum = _mm_add_epi32(w, _mm_loadu_si128(reinterpret_cast<const __m128i*>(constants)));
  s.cdgh = _mm_sha256rnds2_epu32(s.cdgh, s.abef, sum);
  s.abef = _mm_sha256rnds2_epu32(s.abef, s.cdgh, _mm_shuffle_epi32(sum, 0x0E));
  return s;
}
// The words behind the 16 of a, b, c and d.
inline ShaWords next_sha_words(ShaWords a, ShaWords b, ShaWords c, ShaWords d) {
  return _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4)), d);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
