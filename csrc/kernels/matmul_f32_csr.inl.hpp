// matmul_f32_csr: y = x w^T for compressed sparse rows of float32. Only stored values are touched, as in SciPy.
//
// A single row of x is met four stored values at a time, by single loads, in four chains. Of a tile of x, kept with columns
// outermost, a stored value meets whole vectors. Rows are walked block of columns by block of columns (`runs`), so that the x
// of a block stays in a near cache while all rows of a chunk meet it; their sums wait in memory.
#pragma once

#include "kernels/store_rows.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int64_t kRowAhead = 4096;     // bytes that weights are prefetched ahead
constexpr int64_t kValuesAhead = 2048;  // stored values that they are prefetched ahead of a tile

// body(const Index* indices) with the type of the indices.
template <class Body>
inline void with_indices(const CompressedRows& w, const Body& body) {
  w.wide_indices ? body(static_cast<const uint32_t*>(w.indices)) : body(static_cast<const uint16_t*>(w.indices));
}

template <class Index>
inline void f32_csr_row(const CompressedRows& w, const Index* indices, int64_t begin, int64_t end, const float* x, float* y) {
  const float* data = static_cast<const float*>(w.data);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t last = w.indptr[r + 1];
    int64_t i = w.indptr[r];
    Four sums[4] = {zero_four(), zero_four(), zero_four(), zero_four()};
    const auto four = [&](int64_t at, Four sum) ALWAYS_INLINE {
      const Index* k = indices + at;
      return muladd(load_four(data + at), set_four(x + k[0], x + k[1], x + k[2], x + k[3]), sum);
    };
    for (; i + 16 <= last; i += 16) {
      prefetch(reinterpret_cast<const uint8_t*>(data + i) + kRowAhead);
      prefetch(reinterpret_cast<const uint8_t*>(indices + i) + kRowAhead);
      unroll<4>([&](auto c) ALWAYS_INLINE { sums[c] = four(i + 4 * c, sums[c]); });
    }
    for (; i + 4 <= last; i += 4) sums[0] = four(i, sums[0]);
    float rest = 0.0f;
    for (; i < last; ++i) rest += data[i] * x[indices[i]];
    y[r] = sum_four(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) + rest;
  }
}

void matmul_f32_csr_row(const CompressedRows& w, int64_t begin, int64_t end, const float* x, float* y) {
  with_indices(w, [&](const auto* indices) { f32_csr_row(w, indices, begin, end, x, y); });
}

// Vectors of a tile that a stored value meets at once, and stored values whose sums are apart: as many sums as hide the
// latency of one.
template <int kTile>
constexpr int kVectors = kTile / kLanes < 8 ? kTile / kLanes : 8;
template <int kTile>
constexpr int kChains = kVectors<kTile> < 4 ? 4 : 8 / kVectors<kTile>;

// sums[kVectors] += the stored values number first .. last - 1 times x, a part of the tile.
template <int kTile, class Index>
inline void f32_segment(const float* data, const Index* indices, int64_t first, int64_t last, const float* x, float* sums) {
  constexpr int V = kVectors<kTile>, C = kChains<kTile>;
  F32 s[C][V];
  unroll<V>([&](auto t) ALWAYS_INLINE {
    s[0][t] = load_f32(sums + t * kLanes);
    unroll<C, 1>([&](auto c) ALWAYS_INLINE { s[c][t] = zero_f32(); });
  });
  const auto meet = [&](int64_t i, auto c) ALWAYS_INLINE {
    const F32 v = set_f32(data[i]);
    const float* at = x + static_cast<int64_t>(indices[i]) * kTile;
    unroll<V>([&](auto t) ALWAYS_INLINE { s[c][t] = muladd(v, load_f32(at + t * kLanes), s[c][t]); });
  };
  int64_t i = first;
  for (; i + C <= last; i += C) unroll<C>([&](auto c) ALWAYS_INLINE { meet(i + c, c); });
  for (; i < last; ++i) meet(i, pumice::Index<0>{});
  unroll<V>([&](auto t) ALWAYS_INLINE {
    unroll<C, 1>([&](auto c) ALWAYS_INLINE { s[0][t] = add(s[0][t], s[c][t]); });
    store_f32(sums + t * kLanes, s[0][t]);
  });
}

// Stored values of row r in the blocks of columns b .. b + pass - 1.
inline int64_t in_blocks(const CompressedRows& w, int64_t blocks, int64_t r, int64_t b, int64_t pass) {
  const uint8_t* runs = w.runs + r * blocks;
  int64_t count = 0;
  for (int64_t stop = b + pass < blocks ? b + pass : blocks; b < stop; ++b) count += runs[b];
  return count;
}

// Always inline, as all that only prefetches: GCC deletes calls of it. kSecond: to the second cache, where misses of the first are for x.
template <bool kSecond, class T>
ALWAYS_INLINE inline void prefetch_items(const T* items, int64_t first, int64_t last) {
  constexpr int64_t kPerLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = first; i < last; i += kPerLine) kSecond ? prefetch_far(items + i) : prefetch(items + i);
}
template <bool kSecond, class T, class Index>
ALWAYS_INLINE inline void prefetch_values(const T* data, const Index* indices, int64_t first, int64_t last) {
  prefetch_items<kSecond>(data, first, last);
  prefetch_items<kSecond>(indices, first, last);
}

// What comes after the values first .. last - 1: the part behind this one where rows are walked in parts, else values further on.
template <class T, class Index>
ALWAYS_INLINE inline void prefetch_behind(bool walks, const T* data, const Index* indices, int64_t first, int64_t last) {
  if (walks) {
    prefetch_values<false>(data, indices, last, last + (last - first));
  } else {
    prefetch_values<true>(data, indices, first + kValuesAhead, last + kValuesAhead);
  }
}

// The first part of each row.
template <class T, class Index>
ALWAYS_INLINE inline void prefetch_first_parts(const CompressedRows& w, const T* data, const Index* indices, int64_t begin, int64_t end,
                                 int64_t parts) {
  const int64_t some = (w.indptr[end] - w.indptr[begin]) / ((end - begin) * parts) + 1;
  for (int64_t r = begin; r < end; ++r) prefetch_values<false>(data, indices, w.indptr[r], w.indptr[r] + some);
}

template <int kTile, class Index>
inline void f32_csr_tile(const CompressedRows& w, const Index* indices, int64_t begin, int64_t end, const ColumnTile& x,
                         float* y, int64_t y_stride) {
  alignas(64) float sums[kChunkRows * kTile];
  int64_t at[kChunkRows];
  const float* data = static_cast<const float*>(w.data);
  const int64_t blocks = ceil_div(w.cols, kBlock);
  const bool walks = w.runs && x.pass < blocks;
  const int64_t pass = walks ? x.pass : blocks;
  if (walks) prefetch_first_parts(w, data, indices, begin, end, ceil_div(blocks, pass));
  for (int64_t i = 0; i < (end - begin) * kTile; ++i) sums[i] = 0.0f;
  for (int64_t r = begin; r < end; ++r) at[r - begin] = w.indptr[r];
  for (int64_t b = 0; b < blocks; b += pass) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = at[r - begin], last = walks ? first + in_blocks(w, blocks, r, b, pass) : w.indptr[r + 1];
      prefetch_behind(walks, data, indices, first, last);
      for (int part = 0; part < kTile; part += kVectors<kTile> * kLanes) {
        f32_segment<kTile>(data, indices, first, last, x.floats + part, sums + (r - begin) * kTile + part);
      }
      at[r - begin] = last;
    }
  }
  store_rows(sums, kTile, end - begin, x.batch, y + begin, y_stride);
}

void matmul_f32_csr(const CompressedRows& w, int64_t begin, int64_t end, const ColumnTile& x, float* y, int64_t y_stride) {
  with_indices(w, [&](const auto* indices) {
    x.lanes == 16   ? f32_csr_tile<16>(w, indices, begin, end, x, y, y_stride)
    : x.lanes == 32 ? f32_csr_tile<32>(w, indices, begin, end, x, y, y_stride)
                    : f32_csr_tile<64>(w, indices, begin, end, x, y, y_stride);
  });
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
