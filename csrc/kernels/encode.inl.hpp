// What conversion spends its time on. Plain loops: each ISA's flags make vectors of them, to the same bits.
#pragma once

#include <cstdint>

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

// The sum of the squares of a row, and that of its differences from another (each rounded to float), in 16 chains: squares of
// floats are exact in double, so fused or not the bits are the same.
void row_energy(const float* exact, const float* decoded, int64_t cols, double* noise, double* signal) {
  constexpr int kChains = 16;
  double missed[kChains] = {}, whole[kChains] = {};
  int64_t k = 0;
  for (; k + kChains <= cols; k += kChains) {
    for (int i = 0; i < kChains; ++i) {
      const double m = exact[k + i] - decoded[k + i], e = exact[k + i];
      missed[i] += m * m;
      whole[i] += e * e;
    }
  }
  for (int i = 0; k < cols; ++k, ++i) {
    const double m = exact[k] - decoded[k], e = exact[k];
    missed[i] += m * m;
    whole[i] += e * e;
  }
  for (int width = kChains / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) {
      missed[i] += missed[i + width];
      whole[i] += whole[i + width];
    }
  }
  *noise = missed[0];
  *signal = whole[0];
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
