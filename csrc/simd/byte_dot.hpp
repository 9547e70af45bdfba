// Dot and SignedDot (scalar.hpp) for the ISAs with an instruction for the dot product of 4 bytes in each lane. Included by their
// vocabularies, which declare, beside the words of scalar.hpp,
//
// broadcast_quad(p)                       a Quad: the 4 digits at p, the same in each lane
// broadcast_codes(p)                      the same as Codes
// dot_quads(sum, codes, quad)             sum + the sum of 4 products in each lane
// dot_signed(sum, activations, weights)   the same of activations that are raised by 128, if kOffset<8> is 0, and signed weights
// add(I32, I32), shift_left<bits>(I32)    in each lane
#pragma once

namespace pumice::PUMICE_ISA {
namespace {

template <int kBits, bool kTwoDigits>
struct Dot {
  static constexpr bool kByteDigits = true;
  static constexpr int kFlush = 0, kPlanes = 2, kRegisters = 2;
  struct Digits {
    Quad hi, lo;
  };
  struct Wide {};
  I32 hi, lo;
  static Digits load(const uint8_t* hi, const uint8_t* lo) { return {broadcast_quad(hi), broadcast_quad(lo)}; }
  void start(I32 v, Wide&) {
    hi = zero_i32();
    lo = v;
  }
  void add(Codes c, const Digits& a) {
    hi = dot_quads(hi, c, a.hi);
    lo = dot_quads(lo, c, a.lo);
  }
  void flush(Wide&) {}
  I32 total(const Wide&) const { return PUMICE_ISA::add(shift_left<7>(hi), lo); }
};

// No second member that is not used: beyond 32 elements GCC no longer keeps an array of sums in registers.
template <int kBits>
struct Dot<kBits, false> {
  static constexpr bool kByteDigits = true;
  static constexpr int kFlush = 0, kPlanes = 1, kRegisters = 1;
  struct Digits {
    Quad code;
  };
  struct Wide {};
  I32 sum;
  static Digits load(const uint8_t* code, const uint8_t*) { return {broadcast_quad(code)}; }
  void start(I32 v, Wide&) { sum = v; }
  void add(Codes c, const Digits& a) { sum = dot_quads(sum, c, a.code); }
  void flush(Wide&) {}
  I32 total(const Wide&) const { return sum; }
};

template <bool kTwoDigits>
struct SignedDot {
  static constexpr int kPlanes = 2, kRegisters = 2;
  struct Activations {
    Codes hi, lo;
  };
  using Weights = Codes;
  I32 hi, lo;
  static Activations load(const uint8_t* p, int64_t plane) { return {load_codes(p), load_codes(p + plane)}; }
  static Activations broadcast(const uint8_t* p, int64_t plane) { return {broadcast_codes(p), broadcast_codes(p + plane)}; }
  static Weights load_weights(const uint8_t* p) { return load_codes(p); }
  static Weights broadcast_weights(const uint8_t* p) { return broadcast_codes(p); }
  void start(I32 v) { hi = lo = v; }
  void add(const Activations& a, const Weights& w) {
    hi = dot_signed(hi, a.hi, w);
    lo = dot_signed(lo, a.lo, w);
  }
  I32 total() const { return PUMICE_ISA::add(shift_left<7>(hi), lo); }
};

template <>
struct SignedDot<false> {
  static constexpr int kPlanes = 1, kRegisters = 1;
  using Activations = Codes;
  using Weights = Codes;
  I32 sum;
  static Activations load(const uint8_t* p, int64_t) { return load_codes(p); }
  static Activations broadcast(const uint8_t* p, int64_t) { return broadcast_codes(p); }
  static Weights load_weights(const uint8_t* p) { return load_codes(p); }
  static Weights broadcast_weights(const uint8_t* p) { return broadcast_codes(p); }
  void start(I32 v) { sum = v; }
  void add(const Activations& a, const Weights& w) { sum = dot_signed(sum, a, w); }
  I32 total() const { return sum; }
};

}  // namespace
}  // namespace pumice::PUMICE_ISA
