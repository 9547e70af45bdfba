// matmul_f32_half: y = x w^T for float16 and bfloat16 weights, row-major as they rest.
//
// Lanes are columns. Rows of w, widened in registers, meet rows of x: one row of w at a time, in one stream from memory, for
// few rows of x; for more, tiles of kHalfRows x kTileX, of which those of kHalfBlock rows of w share a pass over x.
// Accurate to gamma_n |w||x|.
#pragma once

#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kTileX = 4;
constexpr int kHalfRows = kLanes == 16 ? 4 : kLanes == 1 ? 1 : 2;  // with kTileX rows of x as many sums as there are registers for
constexpr int64_t kHalfBlock = 32;                                  // 256 KiB of w with 4096 columns: they stay in L2

template <bool kBfloat16>
inline F32 load_weights(const uint16_t* p) {
  return kBfloat16 ? load_bfloat16(p) : load_half(p);
}

// y[m][n] for kX rows of x and kW rows of w.
template <bool kBfloat16, int kX, int kW>
inline void half_tile(const uint16_t* w, const float* x, int64_t cols, float* y, int64_t y_stride) {
  constexpr int kChains = kX * kW <= 4 ? 2 : 1;
  F32 sums[kX][kW][kChains];
  unroll<kX>([&](auto m) {
    unroll<kW>([&](auto n) { unroll<kChains>([&](auto chain) { sums[m][n][chain] = zero_f32(); }); });
  });
  int64_t k = 0;
  for (; k + kChains * kLanes <= cols; k += kChains * kLanes) {
    unroll<kChains>([&](auto chain) ALWAYS_INLINE {
      const int64_t at = k + chain * kLanes;
      F32 v[kW];
      unroll<kW>([&](auto n) {
        const uint16_t* next = w + n * cols + at;
        if (chain % 2 == 0) kX == 1 ? prefetch_far(next + 4096) : prefetch(next + 2048);
        v[n] = load_weights<kBfloat16>(w + n * cols + at);
      });
      unroll<kX>([&](auto m) ALWAYS_INLINE {
        const F32 a = load_f32(x + m * cols + at);
        unroll<kW>([&](auto n) { sums[m][n][chain] = muladd(v[n], a, sums[m][n][chain]); });
      });
    });
  }
  for (; k < cols; k += kLanes) {  // what is left, through a scratch: nothing is read past the end
    const int64_t count = cols - k < kLanes ? cols - k : kLanes;
    F32 v[kW];
    unroll<kW>([&](auto n) {
      uint16_t weights[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) weights[i] = w[n * cols + k + i];
      v[n] = load_weights<kBfloat16>(weights);
    });
    unroll<kX>([&](auto m) {
      float ragged[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) ragged[i] = x[m * cols + k + i];
      const F32 a = load_f32(ragged);
      unroll<kW>([&](auto n) { sums[m][n][0] = muladd(v[n], a, sums[m][n][0]); });
    });
  }
  unroll<kX>([&](auto m) {
    unroll<kW>([&](auto n) {
      F32 sum = sums[m][n][0];
      unroll<kChains - 1>([&](auto chain) { sum = add(sum, sums[m][n][chain + 1]); });
      y[m * y_stride + n] = sum_lanes(sum);
    });
  });
}

// y[:, begin:end] for kX rows of x.
template <bool kBfloat16, int kX>
inline void half_rows(const DenseHalf& w, int64_t begin, int64_t end, const float* x, float* y, int64_t y_stride) {
  int64_t n = begin;
  if constexpr (kX == kTileX) {
    for (; n + kHalfRows <= end; n += kHalfRows) {
      half_tile<kBfloat16, kX, kHalfRows>(w.bits + n * w.cols, x, w.cols, y + n, y_stride);
    }
  }
  for (; n < end; ++n) half_tile<kBfloat16, kX, 1>(w.bits + n * w.cols, x, w.cols, y + n, y_stride);
}

template <bool kBfloat16>
inline void half_blocks(const DenseHalf& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y,
                        int64_t y_stride) {
  for (int64_t from = begin; from < end; from += kHalfBlock) {
    const int64_t to = from + kHalfBlock < end ? from + kHalfBlock : end;
    int64_t m = 0;
    for (; m + kTileX <= batch; m += kTileX) {
      half_rows<kBfloat16, kTileX>(w, from, to, x + m * w.cols, y + m * y_stride, y_stride);
    }
    for (; m < batch; ++m) half_rows<kBfloat16, 1>(w, from, to, x + m * w.cols, y + m * y_stride, y_stride);
  }
}

void matmul_f32_half(const DenseHalf& w, int64_t begin, int64_t end, const float* x, int64_t batch, float* y,
                     int64_t y_stride) {
  (w.bfloat16 ? half_blocks<true> : half_blocks<false>)(w, begin, end, x, batch, y, y_stride);
}

// Without a matrix unit x stays whole.
bool takes_pieces(const DenseHalf&, int64_t) { return false; }
constexpr decltype(KernelTable::piece_words) piece_words = nullptr;
constexpr decltype(KernelTable::split_rows) split_rows = nullptr;
constexpr decltype(KernelTable::matmul_pieces) matmul_pieces = nullptr;

void widen_half(const uint16_t* bits, int64_t count, bool bfloat16, float* out) {
  const auto widen = [&](const uint16_t* from, float* to) ALWAYS_INLINE {
    store_f32(to, bfloat16 ? load_bfloat16(from) : load_half(from));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) widen(bits + i, out + i);
  if (i == count) return;
  uint16_t some[kLanes] = {};
  float wide[kLanes];
  for (int64_t j = i; j < count; ++j) some[j - i] = bits[j];
  widen(some, wide);
  for (int64_t j = i; j < count; ++j) out[j] = wide[j - i];
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
