// matmul_f32_half: y = x w^T for float16 and bfloat16 weights, row-major as they rest.
//
// Lanes are columns; one row of w, widened in registers, meets up to four rows of x. Accurate to gamma_n |w||x|.
#pragma once

#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

template <bool kBfloat16>
inline F32 load_weights(const uint16_t* p) {
  return kBfloat16 ? load_bfloat16(p) : load_half(p);
}

template <bool kBfloat16, int kRows>
inline void dot_rows(const uint16_t* w, const float* x, int64_t cols, float* y, int64_t y_stride) {
  F32 sums[kRows][2];
  for (auto& chains : sums) chains[0] = chains[1] = zero_f32();
  int64_t k = 0;
  for (; k + 2 * kLanes <= cols; k += 2 * kLanes) {
    prefetch(w + k + 2048);
    for (int chain = 0; chain < 2; ++chain) {
      const F32 v = load_weights<kBfloat16>(w + k + chain * kLanes);
      for (int m = 0; m < kRows; ++m) {
        sums[m][chain] = muladd(v, load_f32(x + m * cols + k + chain * kLanes), sums[m][chain]);
      }
    }
  }
  for (; k < cols; k += kLanes) {  // at most two more, the last one through a scratch: nothing is read past the end
    const int64_t count = cols - k < kLanes ? cols - k : kLanes;
    uint16_t weights[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) weights[i] = w[k + i];
    const F32 v = load_weights<kBfloat16>(weights);
    for (int m = 0; m < kRows; ++m) {
      float ragged[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) ragged[i] = x[m * cols + k + i];
      sums[m][0] = muladd(v, load_f32(ragged), sums[m][0]);
    }
  }
  for (int m = 0; m < kRows; ++m) y[m * y_stride] = sum_lanes(add(sums[m][0], sums[m][1]));
}

template <bool kBfloat16>
inline void half_rows(const DenseHalf& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y,
                      int64_t y_stride) {
  for (int64_t n = begin; n < end; ++n) {
    const uint16_t* row = w.bits + n * w.cols;
    int64_t m = 0;
    for (; m + 4 <= batch; m += 4) {
      dot_rows<kBfloat16, 4>(row, x + m * w.cols, w.cols, y + m * y_stride + n, y_stride);
    }
    for (; m < batch; ++m) dot_rows<kBfloat16, 1>(row, x + m * w.cols, w.cols, y + m * y_stride + n, y_stride);
  }
}

void matmul_f32_half(const DenseHalf& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y,
                     int64_t y_stride) {
  w.bfloat16 ? half_rows<true>(w, begin, end, x, batch, y, y_stride)
             : half_rows<false>(w, begin, end, x, batch, y, y_stride);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
