// matmul_int_bsr: y = x w^T for block-sparse int8 weights and integer activations; CSR is the case of 1 x 1 blocks.
//
// The same arithmetic as matmul_int on the same codes, bit for bit: t is exact, and a block of 128 columns that holds no
// stored weight would add +0. One scale per row: y = (sum over blocks of float(t) * as) * scale.
#pragma once

#include "kernels/matmul_f32_bsr.inl.hpp"  // for_rows, index_at
#include "kernels/table.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// Calls run(data, column, count) for the stored weights of a row in ascending order, in runs that stay within a block of
// 128 columns, and flush(block) after the last run of each such block.
template <class Run, class Flush>
inline void for_runs(const BlockSparse& w, int64_t r, int64_t first, int64_t last, Run run, Flush flush) {
  const int8_t* data = static_cast<const int8_t*>(w.data) + r % w.blockrows * w.blockcols;
  const int64_t size = w.blockrows * w.blockcols;
  int64_t open = -1;
  for (int64_t i = first; i < last; ++i) {
    int64_t k = index_at(w, i) * w.blockcols;
    const int8_t* v = data + i * size;
    const int64_t stop = k + w.blockcols;
    while (k < stop) {
      const int64_t block = k / kBlock;
      if (block != open) {
        if (open >= 0) flush(open);
        open = block;
      }
      const int64_t edge = (block + 1) * kBlock < stop ? (block + 1) * kBlock : stop;
      run(v, k, edge - k);
      v += edge - k;
      k = edge;
    }
  }
  if (open >= 0) flush(open);
}

inline void int_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const SparseOperand& x, float* y) {
  for_rows(w, begin, end, [&](int64_t r, int64_t first, int64_t last) {
    int32_t t = 0;
    float sum = 0.0f;
    for_runs(
        w, r, first, last,
        [&](const int8_t* v, int64_t k, int64_t count) {
          for (int64_t c = 0; c < count; ++c) t += v[c] * x.codes[k + c];
        },
        [&](int64_t block) {
          sum += static_cast<float>(t) * x.scales[block];
          t = 0;
        });
    y[r] = 0.0f + sum * w.scales[r];  // y starts at +0: a negative scale must not make -0
  });
}

inline void int_bsr_tile(const BlockSparse& w, int64_t begin, int64_t end, const SparseOperand& x, float* y,
                         int64_t y_stride) {
  for_rows(w, begin, end, [&](int64_t r, int64_t first, int64_t last) {
    I32 t[kTileVectors];
    F32 sums[kTileVectors];
    for (int i = 0; i < kTileVectors; ++i) {
      t[i] = zero_i32();
      sums[i] = zero_f32();
    }
    for_runs(
        w, r, first, last,
        [&](const int8_t* v, int64_t k, int64_t count) {
          for (int64_t c = 0; c < count; ++c) {
            for (int i = 0; i < kTileVectors; ++i) {
              t[i] = muladd_i16(x.codes + (k + c) * kSparseTile + i * kLanes, v[c], t[i]);
            }
          }
        },
        [&](int64_t block) {
          for (int i = 0; i < kTileVectors; ++i) {
            const F32 scale = load_f32(x.scales + block * kSparseTile + i * kLanes);
            sums[i] = add(sums[i], mul(to_f32(t[i]), scale));
            t[i] = zero_i32();
          }
        });
    float out[kSparseTile];
    for (int i = 0; i < kTileVectors; ++i) {
      store_f32(out + i * kLanes, add(zero_f32(), mul(sums[i], set_f32(w.scales[r]))));
    }
    for (int64_t m = 0; m < x.batch; ++m) y[m * y_stride + r] = out[m];
  });
}

void matmul_int_bsr(const BlockSparse& w, int64_t begin, int64_t end, const SparseOperand& x, float* y,
                    int64_t y_stride) {
  x.lanes == 1 ? int_bsr_row(w, begin, end, x, y) : int_bsr_tile(w, begin, end, x, y, y_stride);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
