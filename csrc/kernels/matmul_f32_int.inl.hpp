// matmul_f32_int: y = x w^T for prepacked integer weights and float32 activations ("weight-only").
//
// Lanes are the rows of a panel; code i of a word becomes a float and meets the broadcast x of its column. A minimum meets
// the sum of x over its group: sums[row of x][group], null without minima. Accurate to
// gamma_n |w||x| (Higham 2002, section 3.1); products may be fused with sums, so the bits differ between ISAs.
#pragma once

#include "kernels/matmul_int.inl.hpp"  // panels: kPanelSlices, load_scales, store_panel
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

template <int kBits, int kRows>
inline void panel_rows_f32(const DenseInt& w, const float* x, const float* sums, float* y, int64_t y_stride) {
  constexpr int kColsPerWord = 32 / kBits;
  const int64_t groups = groups_of(w);
  const uint32_t mask = w.flip * 0x01010101u;
  F32 result[kRows][kPanelSlices];
  for (auto& lanes : result)
    for (auto& slice : lanes) slice = zero_f32();

  for (int64_t group = 0; group < groups; ++group) {
    const int64_t end = (group + 1) * w.group < w.cols ? (group + 1) * w.group : w.cols;
    for (int s = 0; s < kPanelSlices; ++s) {
      const I32 zero =
          w.zeros ? load_u8(w.zeros + group * kPanelRows + s * kLanes) : set_i32(w.zero);
      F32 sum[kRows];
      for (auto& lanes : sum) lanes = zero_f32();
      for (int64_t k = group * w.group; k < end; k += kColsPerWord) {
        const uint8_t* codes = w.codes + k / kColsPerWord * kPanelRows * 4;
        prefetch_far(codes + kFarAhead);
        const Codes word = kBits == 8 ? flip(load_codes(codes + s * kLanes * 4), mask)
                                      : load_codes(codes + s * kLanes * 4);
        const int count = end - k < kColsPerWord ? static_cast<int>(end - k) : kColsPerWord;
        for (int i = 0; i < kColsPerWord; ++i) {
          if (i >= count) break;
          const F32 v = to_f32(sub(code_at<kBits>(word, i), zero));
          for (int m = 0; m < kRows; ++m) sum[m] = muladd(v, set_f32(x[m * w.cols + k + i]), sum[m]);
        }
      }
      const F32 scale = load_scales(w.scales, w.half_scales, group * kPanelRows + s * kLanes);
      for (int m = 0; m < kRows; ++m) result[m][s] = muladd(sum[m], scale, result[m][s]);
      if (!sums) continue;
      const F32 minimum = load_scales(w.minima, w.half_scales, group * kPanelRows + s * kLanes);
      for (int m = 0; m < kRows; ++m) result[m][s] = muladd(minimum, set_f32(sums[m * groups + group]), result[m][s]);
    }
  }
  for (int m = 0; m < kRows; ++m) store_panel(result[m], w.rows, y + m * y_stride);
}

template <int kBits>
inline void panel_f32(const DenseInt& w, const float* x, const float* sums, int64_t batch, float* y, int64_t y_stride) {
  const int64_t groups = sums ? groups_of(w) : 0;
  int64_t row = 0;
  for (; row + 4 <= batch; row += 4) {
    panel_rows_f32<kBits, 4>(w, x + row * w.cols, sums + row * groups, y + row * y_stride, y_stride);
  }
  for (; row < batch; ++row) {
    panel_rows_f32<kBits, 1>(w, x + row * w.cols, sums + row * groups, y + row * y_stride, y_stride);
  }
}

void matmul_f32_int(const DenseInt& w, const float* x, const float* sums, int64_t batch, float* y, int64_t y_stride) {
  for (int64_t first = 0; first < w.rows; first += kPanelRows) {
    const DenseInt panel = panels_of(w, first, w.rows - first < kPanelRows ? w.rows - first : kPanelRows);
    (w.bits == 8 ? panel_f32<8> : panel_f32<4>)(panel, x, sums, batch, y + first, y_stride);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
