// The vocabulary for AVX2 + AVX-VNNI (Alder Lake, Zen 5): see scalar.hpp for what each word means.
#pragma once

#include "simd/ymm.hpp"

namespace pumice::PUMICE_ISA {
namespace {

template <int kBits, bool kTwoDigits>
constexpr int kTileRows = kTwoDigits ? 2 : kBits == 8 ? 6 : 5;  // as many sums as there are registers for, beside the codes
constexpr int kWideRows = 0;
template <int kBits>
constexpr int kOffset = 0;

template <int kBy>
inline I32 shift_left(I32 v) {
  return {_mm256_slli_epi32(v.v, kBy)};
}

// As asm for the reasons in avx512.hpp; {vex}, because vpdpbusd without it is the instruction of AVX-512.
inline I32 dot_quads(I32 sum, Codes codes, Quad digits) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.v) : "x"(codes.v), "x"(digits));
  return sum;
}
inline I32 dot_signed(I32 sum, Codes activations, Codes weights) { return dot_quads(sum, activations, weights.v); }

}  // namespace
}  // namespace pumice::PUMICE_ISA

#include "simd/byte_dot.hpp"
