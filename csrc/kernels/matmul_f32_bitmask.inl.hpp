// matmul_f32_bitmask: y = x w^T for float weights at the places of a bitmask.
//
// Lanes are columns: the stored values of as many columns as a vector has go to their lanes and meet x there, in a product that
// leaves the other lanes alone, so that a hole never meets an infinite x. Some rows of w and of x are taken together; with one
// row of x more rows of w, for more chains of sums. Accurate to gamma_n |w||x|, with n the stored values of a row.
#pragma once

#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

template <Values kValues>
inline F32 load_values(const void* data, int64_t at) {
  if constexpr (kValues == Values::kFloat32) return load_f32(static_cast<const float*>(data) + at);
  const uint16_t* half = static_cast<const uint16_t*>(data) + at;
  return kValues == Values::kFloat16 ? load_half(half) : load_bfloat16(half);
}

// The same for fewer values than lanes are left before `end`.
template <Values kValues>
inline F32 load_last_values(const void* data, int64_t at, int64_t end) {
  constexpr int64_t kSize = kValues == Values::kFloat32 ? 4 : 2;
  uint8_t last[kLanes * 4] = {};
  const uint8_t* from = static_cast<const uint8_t*>(data) + at * kSize;
  for (int64_t i = 0; i < (end - at) * kSize; ++i) last[i] = from[i];
  return load_values<kValues>(last, 0);
}

// Bits of kLanes columns from `col` on, those beyond `cols` 0.
inline uint32_t load_places(const uint8_t* row, int64_t col, int64_t cols) {
  uint32_t bits = row[col / 8];
  if (kLanes == 16 && col + 8 < cols) bits |= static_cast<uint32_t>(row[col / 8 + 1]) << 8;
  return kLanes < 8 ? bits >> (col % 8) & ((1u << kLanes) - 1) : bits;
}

// Rows r .. r + kRows - 1 of w for kBatch rows of x.
template <Values kValues, int kRows, int kBatch>
inline void masked_rows(const Bitmask& w, int64_t r, const float* x, float* y, int64_t y_stride) {
  const int64_t bytes = ceil_div(w.cols, 8), end = w.offsets[w.rows];
  const uint8_t* masks = w.bitmask + r * bytes;
  int64_t at[kRows];
  F32 sums[kRows][kBatch];
  unroll<kRows>([&](auto i) {
    at[i] = w.offsets[r + i];
    unroll<kBatch>([&](auto m) { sums[i][m] = zero_f32(); });
  });
  const auto step = [&](const float* from, int64_t stride, int64_t c) ALWAYS_INLINE {
    F32 values[kRows];
    Lanes lanes[kRows];
    unroll<kRows>([&](auto i) ALWAYS_INLINE {
      const uint32_t bits = load_places(masks + i * bytes, c, w.cols);
      const F32 stored = at[i] + kLanes <= end ? load_values<kValues>(w.data, at[i]) : load_last_values<kValues>(w.data, at[i], end);
      lanes[i] = lanes_of(bits);
      values[i] = expand(stored, lanes[i]);
      at[i] += __builtin_popcount(bits);
    });
    unroll<kBatch>([&](auto m) ALWAYS_INLINE {
      const F32 v = load_f32(from + m * stride);
      unroll<kRows>([&](auto i) ALWAYS_INLINE { sums[i][m] = muladd_where(lanes[i], values[i], v, sums[i][m]); });
    });
  };
  int64_t c = 0;
  for (; c + kLanes <= w.cols; c += kLanes) step(x + c, w.cols, c);
  if (c < w.cols) {
    float last[kBatch * kLanes] = {};
    for (int64_t m = 0; m < kBatch; ++m) {
      for (int64_t i = 0; c + i < w.cols; ++i) last[m * kLanes + i] = x[m * w.cols + c + i];
    }
    step(last, kLanes, c);
  }
  unroll<kBatch>([&](auto m) { unroll<kRows>([&](auto i) { y[m * y_stride + r + i] = sum_lanes(sums[i][m]); }); });
}

template <Values kValues, int kRows, int kBatch>
inline void masked_range(const Bitmask& w, int64_t begin, int64_t end, const float* x, float* y, int64_t y_stride) {
  int64_t r = begin;
  for (; r + kRows <= end; r += kRows) masked_rows<kValues, kRows, kBatch>(w, r, x, y, y_stride);
  for (; r < end; ++r) masked_rows<kValues, 1, kBatch>(w, r, x, y, y_stride);
}

template <Values kValues>
inline void masked_batch(const Bitmask& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y, int64_t y_stride) {
  constexpr int kMost = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;
  int64_t m = 0;
  for (; m + kMost <= batch; m += kMost) {
    masked_range<kValues, 2, kMost>(w, begin, end, x + m * w.cols, y + m * y_stride, y_stride);
  }
  for (; m + 2 <= batch; m += 2) masked_range<kValues, 2, 2>(w, begin, end, x + m * w.cols, y + m * y_stride, y_stride);
  for (; m < batch; ++m) masked_range<kValues, 2, 1>(w, begin, end, x + m * w.cols, y + m * y_stride, y_stride);
}

void matmul_f32_bitmask(const Bitmask& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y, int64_t y_stride) {
  w.values == Values::kFloat32   ? masked_batch<Values::kFloat32>(w, begin, end, x, batch, y, y_stride)
  : w.values == Values::kFloat16 ? masked_batch<Values::kFloat16>(w, begin, end, x, batch, y, y_stride)
                                 : masked_batch<Values::kBfloat16>(w, begin, end, x, batch, y, y_stride);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
