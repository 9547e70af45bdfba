// What conversion spends its time on. Plain loops: each ISA's flags make vectors of them, to the same bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace pumice::PUMICE_ISA {
namespace {

// formats::nearest_code of a run of weights that share a scale, which is not 0.
void encode_run(const float* w, int64_t count, float scale, float zero, float minimum, float top, uint8_t* codes) {
  constexpr float kMagic = 12582912.0f, kFar = 1024.0f;  // as round_half_even
  for (int64_t i = 0; i < count; ++i) {
    float steps = (w[i] - minimum) / scale;
    steps = steps < -kFar ? -kFar : steps;
    steps = kFar < steps ? kFar : steps;
    float code = zero + ((steps + kMagic) - kMagic);
    code = top < code ? top : code;
    codes[i] = static_cast<uint8_t>(static_cast<int>(code > 0.0f ? code : 0.0f));
  }
}

// Whether all are finite.
bool all_finite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

// The least and the largest of some values, in chains that vectors can hold.
template <int kChains>
inline void range_in_chains(const float* v, int64_t count, float* low, float* high) {
  float lo[kChains], hi[kChains];
  for (int i = 0; i < kChains; ++i) lo[i] = hi[i] = v[0];
  int64_t k = 0;
  for (; k + kChains <= count; k += kChains) {
    for (int i = 0; i < kChains; ++i) {
      lo[i] = v[k + i] < lo[i] ? v[k + i] : lo[i];
      hi[i] = v[k + i] > hi[i] ? v[k + i] : hi[i];
    }
  }
  for (int i = 0; k < count; ++k, ++i) {
    lo[i] = v[k] < lo[i] ? v[k] : lo[i];
    hi[i] = v[k] > hi[i] ? v[k] : hi[i];
  }
  for (int width = kChains / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lo[i] = lo[i + width] < lo[i] ? lo[i + width] : lo[i];
      hi[i] = hi[i + width] > hi[i] ? hi[i + width] : hi[i];
    }
  }
  *low = lo[0];
  *high = hi[0];
}

void range_of(const float* v, int64_t count, float* low, float* high) {
  (count < 128 ? range_in_chains<8> : range_in_chains<32>)(v, count, low, high);
}

// The sum of the squares of a row, and that of its differences from another (each rounded to float), in 16 chains: squares of
// floats are exact in double, so fused or not the bits are the same. Chains are vectors of 8, which narrower ISAs cut.
using Doubles = double __attribute__((vector_size(64)));
using Floats = float __attribute__((vector_size(32)));

void row_energy(const float* exact, const float* decoded, int64_t cols, double* noise, double* signal) {
  Doubles n0 = {}, n1 = {}, s0 = {}, s1 = {};
  int64_t k = 0;
  for (; k + 16 <= cols; k += 16) {
    Floats e[2], d[2];
    std::memcpy(e, exact + k, sizeof e);
    std::memcpy(d, decoded + k, sizeof d);
    const Doubles m0 = __builtin_convertvector(e[0] - d[0], Doubles), m1 = __builtin_convertvector(e[1] - d[1], Doubles);
    const Doubles e0 = __builtin_convertvector(e[0], Doubles), e1 = __builtin_convertvector(e[1], Doubles);
    n0 += m0 * m0;
    n1 += m1 * m1;
    s0 += e0 * e0;
    s1 += e1 * e1;
  }
  n0 += n1;
  s0 += s1;
  double lost = 0, whole = 0;
  for (int i = 0; i < 8; ++i) {
    lost += n0[i];
    whole += s0[i];
  }
  for (; k < cols; ++k) {
    const double m = exact[k] - decoded[k], e = exact[k];
    lost += m * m;
    whole += e * e;
  }
  *noise = lost;
  *signal = whole;
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
