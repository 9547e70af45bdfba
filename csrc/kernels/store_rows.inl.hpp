// How sums of a tile of x, whose lanes are rows of x, become rows of y.
#pragma once

#include "kernels/unroll.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// y[m][r] = sums[r][m] for some rows of w.
inline void store_rows(float* sums, int64_t lanes, int64_t rows, int64_t batch, float* y, int64_t y_stride) {
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes) {
    for (int64_t m = 0; m < batch; m += kLanes) {
      F32 v[kLanes];
      unroll<kLanes>([&](auto i) ALWAYS_INLINE { v[i] = load_f32(sums + (r + i) * lanes + m); });
      transpose(v);
      const int64_t count = batch - m < kLanes ? batch - m : kLanes;
      unroll<kLanes>([&](auto i) ALWAYS_INLINE {
        if (i < count) store_f32(y + (m + i) * y_stride + r, v[i]);
      });
    }
  }
  for (; r < rows; ++r) {
    for (int64_t m = 0; m < batch; ++m) y[m * y_stride + r] = sums[r * lanes + m];
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
