// matmul_int_csr: y = x w^T for compressed sparse rows of int8 and integer activations.
//
// The same arithmetic as matmul_int on the same codes, bit for bit: t is exact, and a block of 128 columns that holds no
// stored value would add +0. One scale per row: y = (sum over blocks of float(t) * as) * scale.
#pragma once

#include "kernels/matmul_f32_csr.inl.hpp"  // with_indices, kVectors
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// Where the run of stored values ends that begins at `first` and stays within a block of columns.
template <class Index>
inline int64_t run_end(const Index* indices, int64_t first, int64_t last) {
  const int64_t block = indices[first] / kBlock;
  int64_t i = first + 1;
  while (i < last && indices[i] / kBlock == block) ++i;
  return i;
}

constexpr int64_t kPieceBlocks = 32;
constexpr int kStep = 16;

// The sum over blocks of float(t) * as of one row, by running sums: the loop over stored values does not end with each block,
// whose short and uneven runs would cost a mispredicted branch each; t is a difference of two running sums, modulo 2^32.
template <class Index>
inline float int_row_by_runs(const int8_t* data, const Index* indices, const uint8_t* runs, int64_t blocks, int64_t i,
                             const int16_t* codes, const float* scales) {
  int32_t running[kPieceBlocks * kBlock + 1];
  running[0] = 0;
  float sum = 0.0f;
  for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
    const int64_t stop = b + kPieceBlocks < blocks ? b + kPieceBlocks : blocks;
    int64_t count = 0;
    for (int64_t block = b; block < stop; ++block) count += runs[block];
    uint32_t t = 0;
    const int8_t* v = data + i;
    const Index* k = indices + i;
    const auto meet = [&](int64_t j) ALWAYS_INLINE {
      t += static_cast<uint32_t>(v[j] * codes[k[j]]);
      running[j + 1] = static_cast<int32_t>(t);
    };
    int64_t j = 0;
    for (; j + kStep <= count; j += kStep) {
      prefetch(reinterpret_cast<const uint8_t*>(v + j) + kRowAhead);
      prefetch(reinterpret_cast<const uint8_t*>(k + j) + kRowAhead);
      unroll<kStep>([&](auto some) ALWAYS_INLINE { meet(j + some); });
    }
    for (; j < count; ++j) meet(j);
    i += count;
    int64_t at = 0;
    uint32_t before = 0;
    for (int64_t block = b; block < stop; ++block) {
      at += runs[block];
      const auto now = static_cast<uint32_t>(running[at]);
      sum += static_cast<float>(static_cast<int32_t>(now - before)) * scales[block];
      before = now;
    }
  }
  return sum;
}

// The same without runs.
template <class Index>
inline float int_row(const int8_t* data, const Index* indices, int64_t first, int64_t last, const int16_t* codes,
                     const float* scales) {
  float sum = 0.0f;
  while (first < last) {
    const int64_t end = run_end(indices, first, last), block = indices[first] / kBlock;
    int32_t t = 0;
    for (; first < end; ++first) t += data[first] * codes[indices[first]];
    sum += static_cast<float>(t) * scales[block];
  }
  return sum;
}

void matmul_int_csr_row(const CompressedRows& w, int64_t begin, int64_t end, const int16_t* codes, const float* scales,
                        float* y) {
  const int8_t* data = static_cast<const int8_t*>(w.data);
  const int64_t blocks = ceil_div(w.cols, kBlock);
  with_indices(w, [&](const auto* indices) {
    for (int64_t r = begin; r < end; ++r) {
      const float sum = w.runs ? int_row_by_runs(data, indices, w.runs + r * blocks, blocks, w.indptr[r], codes, scales)
                               : int_row(data, indices, w.indptr[r], w.indptr[r + 1], codes, scales);
      y[r] = 0.0f + sum * w.scales[r];  // y starts at +0: a negative scale must not make -0
    }
  });
}

// sums[kVectors] += float(t) * as for a run of stored values within one block, of a part of the tile.
template <int kTile, class Index>
inline void int_segment(const int8_t* data, const Index* indices, int64_t first, int64_t last, const int16_t* pairs,
                        const float* scales, F32* sums) {
  constexpr int V = kVectors<kTile>, C = kChains<kTile>;
  I32 t[C][V];
  unroll<C>([&](auto c) ALWAYS_INLINE { unroll<V>([&](auto v) ALWAYS_INLINE { t[c][v] = zero_i32(); }); });
  const auto meet = [&](int64_t i, auto c) ALWAYS_INLINE {
    const auto k = static_cast<uint32_t>(indices[i]);
    const auto both = static_cast<int32_t>(static_cast<uint32_t>(data[i] & 0xFFFF) << (16 * (k & 1)));  // its half of a pair
    const int16_t* at = pairs + static_cast<int64_t>(k / 2) * (2 * kTile);
    unroll<V>([&](auto v) ALWAYS_INLINE { t[c][v] = muladd_pairs(at + 2 * v * kLanes, both, t[c][v]); });
  };
  int64_t i = first;
  for (; i + C <= last; i += C) unroll<C>([&](auto c) ALWAYS_INLINE { meet(i + c, c); });
  for (; i < last; ++i) meet(i, pumice::Index<0>{});
  unroll<V>([&](auto v) ALWAYS_INLINE {
    unroll<C, 1>([&](auto c) ALWAYS_INLINE { t[0][v] = add(t[0][v], t[c][v]); });
    sums[v] = add(sums[v], mul(to_f32(t[0][v]), load_f32(scales + v * kLanes)));
  });
}

// sums[m] of one row for a narrow tile of x, by sums that only grow, as int_row_by_runs.
template <int kTile, class Index>
inline void int_narrow_row(const CompressedRows& w, const Index* indices, int64_t r, const ColumnTile& x, int part, float* row_sums) {
  constexpr int V = kVectors<kTile>;
  const int64_t blocks = ceil_div(w.cols, kBlock);
  const uint8_t* runs = w.runs + r * blocks;
  const int8_t* data = static_cast<const int8_t*>(w.data) + w.indptr[r];
  const int16_t* pairs = x.pairs + 2 * part;
  const Index* k = indices + w.indptr[r];
  alignas(64) int32_t ends[kPieceBlocks * V * kLanes];  // the sums behind each block of a piece
  F32 sums[V];
  unroll<V>([&](auto v) ALWAYS_INLINE { sums[v] = load_f32(row_sums + v * kLanes); });
  for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
    const int64_t stop = b + kPieceBlocks < blocks ? b + kPieceBlocks : blocks;
    int64_t count = 0;
    for (int64_t block = b; block < stop; ++block) count += runs[block];
    I32 t[V];
    unroll<V>([&](auto v) ALWAYS_INLINE { t[v] = zero_i32(); });
    for (int64_t i = 0; i < count; ++i) {
      const auto column = static_cast<uint32_t>(k[i]);
      const auto both = static_cast<int32_t>(static_cast<uint32_t>(data[i] & 0xFFFF) << (16 * (column & 1)));
      const int16_t* at = pairs + static_cast<int64_t>(column / 2) * (2 * kTile);
      int32_t* end = ends + (column / kBlock - b) * (V * kLanes);
      unroll<V>([&](auto v) ALWAYS_INLINE {
        t[v] = add(t[v], muladd_pairs(at + 2 * v * kLanes, both, zero_i32()));
        store_i32(end + v * kLanes, t[v]);
      });
    }
    data += count;
    k += count;
    I32 before[V];
    unroll<V>([&](auto v) ALWAYS_INLINE { before[v] = zero_i32(); });
    for (int64_t block = b; block < stop; ++block) {
      if (runs[block] == 0) continue;
      unroll<V>([&](auto v) ALWAYS_INLINE {
        const I32 now = load_i32(ends + (block - b) * (V * kLanes) + v * kLanes);
        sums[v] = add(sums[v], mul(to_f32(sub(now, before[v])), load_f32(x.scales + block * kTile + part + v * kLanes)));
        before[v] = now;
      });
    }
  }
  unroll<V>([&](auto v) ALWAYS_INLINE { store_f32(row_sums + v * kLanes, sums[v]); });
}

// The blocks of columns b .. stop - 1 of one row, from the stored value `at` on; returns the first value beyond them.
template <int kTile, class Index>
inline int64_t int_blocks(const CompressedRows& w, const Index* indices, int64_t r, int64_t b, int64_t stop, int64_t at,
                          const ColumnTile& x, int part, float* row_sums) {
  constexpr int V = kVectors<kTile>;
  const int8_t* data = static_cast<const int8_t*>(w.data);
  const int64_t blocks = ceil_div(w.cols, kBlock), last = w.indptr[r + 1];
  F32 sums[V];
  unroll<V>([&](auto v) ALWAYS_INLINE { sums[v] = load_f32(row_sums + v * kLanes); });
  while (w.runs ? b < stop : at < last) {
    if (!w.runs) b = indices[at] / kBlock;
    const int64_t end = w.runs ? at + w.runs[r * blocks + b] : run_end(indices, at, last);
    int_segment<kTile>(data, indices, at, end, x.pairs + 2 * part, x.scales + b * kTile + part, sums);
    at = end;
    ++b;
  }
  unroll<V>([&](auto v) ALWAYS_INLINE { store_f32(row_sums + v * kLanes, sums[v]); });
  return at;
}

template <int kTile, class Index>
inline void int_csr_tile(const CompressedRows& w, const Index* indices, int64_t begin, int64_t end, const ColumnTile& x,
                         float* y, int64_t y_stride) {
  alignas(64) float sums[kChunkRows * kTile];
  int64_t at[kChunkRows];
  const int64_t blocks = ceil_div(w.cols, kBlock), pass = w.runs ? x.pass : blocks;
  const bool walks = w.runs && pass < blocks;
  const int8_t* data = static_cast<const int8_t*>(w.data);
  if (walks) prefetch_first_parts(w, data, indices, begin, end, ceil_div(blocks, pass));
  for (int64_t i = 0; i < (end - begin) * kTile; ++i) sums[i] = 0.0f;
  for (int64_t r = begin; r < end; ++r) at[r - begin] = w.indptr[r];
  for (int64_t b = 0; b < blocks; b += pass) {
    const int64_t stop = b + pass < blocks ? b + pass : blocks;
    for (int64_t r = begin; r < end; ++r) {
      int64_t next = 0;
      for (int part = 0; part < kTile; part += kVectors<kTile> * kLanes) {
        float* row = sums + (r - begin) * kTile + part;
        if (kTile == 16 && w.runs && !walks) {
          int_narrow_row<kTile>(w, indices, r, x, part, row);
          next = w.indptr[r + 1];
        } else {
          next = int_blocks<kTile>(w, indices, r, b, stop, at[r - begin], x, part, row);
        }
      }
      prefetch_behind(walks, data, indices, at[r - begin], next);
      at[r - begin] = next;
    }
  }
  for (int64_t r = begin; r < end; ++r) {
    float* row = sums + (r - begin) * kTile;
    for (int m = 0; m < kTile; m += kLanes) store_f32(row + m, add(zero_f32(), mul(load_f32(row + m), set_f32(w.scales[r]))));
  }
  store_rows(sums, kTile, end - begin, x.batch, y + begin, y_stride);
}

void matmul_int_csr(const CompressedRows& w, int64_t begin, int64_t end, const ColumnTile& x, float* y, int64_t y_stride) {
  with_indices(w, [&](const auto* indices) {
    x.lanes == 16   ? int_csr_tile<16>(w, indices, begin, end, x, y, y_stride)
    : x.lanes == 32 ? int_csr_tile<32>(w, indices, begin, end, x, y, y_stride)
                    : int_csr_tile<64>(w, indices, begin, end, x, y, y_stride);
  });
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
