// matmul_f32_bsr: y = x w^T for block-sparse float32 weights; CSR is the case of 1 x 1 blocks.
//
// For a tile of kSparseTile rows of x, kept with columns outermost, a stored weight meets whole vectors and no index
// is looked up twice; a single row of x runs four chains of scalar sums. Only stored values are touched, as in SciPy.
#pragma once

#include "kernels/table.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kTileVectors = static_cast<int>(kSparseTile) / kLanes;

inline int64_t index_at(const BlockSparse& w, int64_t i) {
  return w.wide_indices ? static_cast<const uint32_t*>(w.indices)[i] : static_cast<const uint16_t*>(w.indices)[i];
}

// Calls row(r, first block, last block) for every row of the block rows begin..end-1.
template <class Row>
inline void for_rows(const BlockSparse& w, int64_t begin, int64_t end, Row row) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t stop = (b + 1) * w.blockrows < w.rows ? (b + 1) * w.blockrows : w.rows;
    for (int64_t r = b * w.blockrows; r < stop; ++r) row(r, w.indptr[b], w.indptr[b + 1]);
  }
}

// kCols: columns of a block if known when compiling, else 0.
template <int kCols>
inline void f32_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const float* x, float* y) {
  const int64_t cols = kCols ? kCols : w.blockcols, size = w.blockrows * cols;
  for_rows(w, begin, end, [&](int64_t r, int64_t first, int64_t last) {
    const float* data = static_cast<const float*>(w.data) + r % w.blockrows * cols;
    float sums[4] = {};
    if (kCols == 1) {
      int64_t i = first;
      for (; i + 4 <= last; i += 4) {
        for (int c = 0; c < 4; ++c) sums[c] += data[(i + c) * size] * x[index_at(w, i + c)];
      }
      for (; i < last; ++i) sums[0] += data[i * size] * x[index_at(w, i)];
    } else {
      for (int64_t i = first; i < last; ++i) {
        const float* v = data + i * size;
        const float* at = x + index_at(w, i) * cols;
        int64_t c = 0;
        for (; c + 4 <= cols; c += 4) {
          for (int chain = 0; chain < 4; ++chain) sums[chain] += v[c + chain] * at[c + chain];
        }
        for (; c < cols; ++c) sums[0] += v[c] * at[c];
      }
    }
    y[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  });
}

template <int kCols>
inline void f32_bsr_tile(const BlockSparse& w, int64_t begin, int64_t end, const SparseOperand& x, float* y,
                         int64_t y_stride) {
  const int64_t cols = kCols ? kCols : w.blockcols, size = w.blockrows * cols;
  for_rows(w, begin, end, [&](int64_t r, int64_t first, int64_t last) {
    const float* data = static_cast<const float*>(w.data) + r % w.blockrows * cols;
    F32 sums[kTileVectors];
    for (auto& sum : sums) sum = zero_f32();
    for (int64_t i = first; i < last; ++i) {
      const float* at = x.floats + index_at(w, i) * cols * kSparseTile;
      for (int64_t c = 0; c < cols; ++c) {
        const F32 v = set_f32(data[i * size + c]);
        for (int t = 0; t < kTileVectors; ++t) {
          sums[t] = muladd(v, load_f32(at + c * kSparseTile + t * kLanes), sums[t]);
        }
      }
    }
    float out[kSparseTile];
    for (int t = 0; t < kTileVectors; ++t) store_f32(out + t * kLanes, sums[t]);
    for (int64_t m = 0; m < x.batch; ++m) y[m * y_stride + r] = out[m];
  });
}

void matmul_f32_bsr(const BlockSparse& w, int64_t begin, int64_t end, const SparseOperand& x, float* y,
                    int64_t y_stride) {
  if (x.lanes == 1) {
    w.blockcols == 1   ? f32_bsr_row<1>(w, begin, end, x.floats, y)
    : w.blockcols == 4 ? f32_bsr_row<4>(w, begin, end, x.floats, y)
                       : f32_bsr_row<0>(w, begin, end, x.floats, y);
  } else {
    w.blockcols == 1   ? f32_bsr_tile<1>(w, begin, end, x, y, y_stride)
    : w.blockcols == 4 ? f32_bsr_tile<4>(w, begin, end, x, y, y_stride)
                       : f32_bsr_tile<0>(w, begin, end, x, y, y_stride);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
