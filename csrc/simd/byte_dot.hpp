// Dot (scalar.hpp) for the ISAs with an instruction for the dot product of 4 bytes in each lane. Included by their
// vocabularies, which declare, beside the words of scalar.hpp,
//
// broadcast_quad(p)                       a Quad: the 4 digits at p, the same in each lane
// dot_quads(sum, codes, quad)             sum + the sum of 4 products in each lane
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
struct LaneDot {
  static constexpr int kPlanes = 2, kRegisters = 2;
  struct Lanes {
    Codes hi, lo;
  };
  I32 hi, lo;
  static Lanes load(const uint8_t* p, int64_t plane) { return {load_codes(p), load_codes(p + plane)}; }
  static Quad load_weights(const uint8_t* p) { return broadcast_quad(p); }
  void start(I32 v) { hi = lo = v; }
  void add(const Lanes& a, Quad weights) {
    hi = dot_quads(hi, a.hi, weights);
    lo = dot_quads(lo, a.lo, weights);
  }
  I32 total() const { return PUMICE_ISA::add(shift_left<7>(hi), lo); }
};

template <>
struct LaneDot<false> {
  static constexpr int kPlanes = 1, kRegisters = 1;
  struct Lanes {
    Codes code;
  };
  I32 sum;
  static Lanes load(const uint8_t* p, int64_t) { return {load_codes(p)}; }
  static Quad load_weights(const uint8_t* p) { return broadcast_quad(p); }
  void start(I32 v) { sum = v; }
  void add(const Lanes& a, Quad weights) { sum = dot_quads(sum, a.code, weights); }
  I32 total() const { return sum; }
};

}  // namespace
}  // namespace pumice::PUMICE_ISA
