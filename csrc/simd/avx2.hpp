// The vocabulary for AVX2 + FMA + F16C: see scalar.hpp for what each word means.
#pragma once

#include "simd/ymm.hpp"

namespace pumice::PUMICE_ISA {
namespace {

template <int kBits, bool kTwoDigits>
constexpr int kTileRows = kBits > 4 || kTwoDigits ? 4 : 5;
constexpr int kWideRows = 6;  // 12 sums, 2 vectors of codes, an activation and a product: 16 registers
template <int kBits>
constexpr int kOffset = 0;

// int16 pairs and vpmaddwd: exact for 8-bit codes too, on which vpmaddubsw would saturate.
template <int kBits, bool kTwoDigits>
struct Dot {
  static constexpr bool kByteDigits = false;
  static constexpr int kFlush = 0, kPlanes = 2, kRegisters = 1;
  struct Digits {
    Quad even, odd;
  };
  struct Wide {};
  __m256i sum;
  static Quad quad(const uint8_t* p) { return broadcast_quad(p); }
  static Digits load(const uint8_t* even, const uint8_t* odd) { return {quad(even), quad(odd)}; }
  static Codes widened(Codes c, int plane) {
    return {plane ? _mm256_srli_epi16(c.v, 8) : _mm256_and_si256(c.v, _mm256_set1_epi16(255))};
  }
  void start(I32 v, Wide&) { sum = v.v; }
  void add(Codes c, const Digits& a) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(widened(c, 0).v, a.even));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(widened(c, 1).v, a.odd));
  }
  void add_pinned(Codes c, const Digits& a) {
    add_wide(widened(c, 0), a.even);
    add_wide(widened(c, 1), a.odd);
  }
  void add_wide(Codes c, Quad a) {
    __m256i product;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(c.v), "x"(a));
  }
  void flush(Wide&) {}
  I32 total(const Wide&) const { return {sum}; }
};

template <bool kTwoDigits>
struct SignedDot {
  static constexpr int kPlanes = 2, kRegisters = 1;
  struct Activations {
    __m256i even, odd;
  };
  using Weights = Activations;  // int16 pairs
  __m256i sum;
  static Activations load(const uint8_t* p, int64_t plane) { return {load_codes(p).v, load_codes(p + plane).v}; }
  static Activations broadcast(const uint8_t* p, int64_t plane) { return {broadcast_quad(p), broadcast_quad(p + plane)}; }
  static Weights widened(__m256i bytes) { return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)}; }
  static Weights load_weights(const uint8_t* p) { return widened(load_codes(p).v); }
  static Weights broadcast_weights(const uint8_t* p) { return widened(broadcast_quad(p)); }
  void start(I32 v) { sum = v.v; }
  void add(const Activations& a, const Weights& w) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a.even, w.even));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a.odd, w.odd));
  }
  I32 total() const { return {sum}; }
};

// Codes of up to 4 bits and one digit: vpmaddubsw gives pairs up to 2 * 15 * 127 = 3810, of which 8 fit into int16.
struct NarrowDot {
  static constexpr bool kByteDigits = true;
  static constexpr int kFlush = 8, kPlanes = 1, kRegisters = 1;
  struct Digits {
    Quad code;
  };
  using Wide = I32;
  __m256i narrow;
  static Quad quad(const uint8_t* p) { return broadcast_quad(p); }
  static Digits load(const uint8_t* code, const uint8_t*) { return {quad(code)}; }
  static Codes widened(Codes c, int) { return c; }
  void start(I32 v, Wide& wide) {
    narrow = _mm256_setzero_si256();
    wide = v;
  }
  void add(Codes c, const Digits& a) { narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(c.v, a.code)); }
  void add_pinned(Codes c, const Digits& a) { add_wide(c, a.code); }
  void add_wide(Codes c, Quad a) {
    __m256i product;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(narrow), "=&x"(product) : "x"(c.v), "x"(a));
  }
  void flush(Wide& wide) {
    wide.v = _mm256_add_epi32(wide.v, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    narrow = _mm256_setzero_si256();
  }
  I32 total(const Wide& wide) const { return wide; }
};
template <>
struct Dot<2, false> : NarrowDot {};
template <>
struct Dot<3, false> : NarrowDot {};
template <>
struct Dot<4, false> : NarrowDot {};

}  // namespace
}  // namespace pumice::PUMICE_ISA
