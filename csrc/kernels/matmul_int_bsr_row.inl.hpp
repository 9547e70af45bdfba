// matmul_int_bsr_row: a single row of x times block-sparse int8 or int4 weights. Lanes are rows of w.
//
// Runs are short and uneven: a loop that ended with each of them would be mispredicted once a run. So sums only grow along a
// block row, where they stand at the end of each run is kept, and the sum of a run is a difference, modulo 2^32.
#pragma once

#include <cstring>

#include "kernels/bsr_quads.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

struct RunSums {
  int32_t* sums;  // [runs][rows]
  float* steps;   // [runs] as
};

// Quads whose rows fill vectors: quad i is of the columns 4 * columns[i] and up, and its rows are at codes + i * apart.
template <class Index>
struct TallQuads {
  const Index* columns;
  int64_t count;
  const uint8_t* codes;
  int64_t apart, rows;
};

// y[r] = sum over runs of float(t) * as, of kSlices vectors of rows.
template <bool kTwoDigits, int kSlices, class Index>
__attribute__((flatten)) inline void int_bsr_slices(const TallQuads<Index>& q, const uint8_t* codes, const QuantizedTiles& a,
                                                    uint32_t mask, const RunSums& to, F32 (&y)[kSlices]) {
  using D = Dot<8, kTwoDigits>;
  const Index* columns = q.columns;  // what the loop reads, apart from what it writes
  const int64_t count = q.count, apart = q.apart;
  const uint8_t* quads = a.quads;
  const int32_t* starts = a.starts;
  const float* steps = a.steps;
  int32_t* out = to.sums;
  float* out_steps = to.steps;
  I32 sums[kSlices];
  unroll<kSlices>([&](auto s) {
    sums[s] = zero_i32();
    y[s] = zero_f32();
  });
  if (count == 0) return;
  int64_t run = 0;
  uint32_t column = columns[0];
  for (int64_t i = 0; i < count; ++i, codes += apart) {
    const uint32_t next = columns[i + (i + 1 < count)];
    const uint8_t* quad = quads + column * (D::kPlanes * 4);
    const auto digits = D::load(quad, quad + 4);
    const I32 start = set_i32(starts[column]);
    prefetch(codes + kQuadsAhead);
    unroll<kSlices>([&](auto s) ALWAYS_INLINE {
      D dot;
      typename D::Wide wide;
      dot.start(start, wide);
      dot.add(flip(load_codes(codes + s * kLanes * 4), mask), digits);
      dot.flush(wide);
      sums[s] = add(sums[s], dot.total(wide));
      store_i32(out + run * kSlices * kLanes + s * kLanes, sums[s]);
    });
    out_steps[run] = steps[column / kBlockQuads];
    run += (column ^ next) >= kBlockQuads;
    column = next;
  }
  const int64_t runs = run + 1;
  I32 before[kSlices];
  unroll<kSlices>([&](auto s) { before[s] = zero_i32(); });
  for (run = 0; run < runs; ++run) {
    const F32 scale = set_f32(out_steps[run]);
    unroll<kSlices>([&](auto s) ALWAYS_INLINE {
      const I32 sum = load_i32(out + run * kSlices * kLanes + s * kLanes);
      y[s] = add(y[s], mul(to_f32(sub(sum, before[s])), scale));
      before[s] = sum;
    });
  }
}

// Rows `row` and up of the quads; `rows` are in w.
template <bool kTwoDigits, int kSlices, class Index>
inline void int_bsr_parts(const TallQuads<Index>& q, const QuantizedTiles& a, uint32_t mask, const RunSums& to, int64_t row,
                          int64_t rows, const float* scales, float* y) {
  for (; row + kSlices * kLanes <= q.rows; row += kSlices * kLanes) {
    F32 sums[kSlices];
    float out[kSlices * kLanes];
    int_bsr_slices<kTwoDigits, kSlices>(q, q.codes + row * 4, a, mask, to, sums);
    unroll<kSlices>([&](auto s) { store_f32(out + s * kLanes, sums[s]); });
    for (int64_t r = row; r < row + kSlices * kLanes && r < rows; ++r) y[r] = 0.0f + out[r - row] * scales[r];
  }
  if constexpr (kSlices > 1) int_bsr_parts<kTwoDigits, kSlices / 2>(q, a, mask, to, row, rows, scales, y);
}

// A block row whose quads fill vectors where they rest.
template <bool kTwoDigits, class Index>
inline void int_bsr_tall(const BlockSparse& w, const Index* indices, int64_t block_row, const QuantizedTiles& a, uint32_t mask,
                         const RunSums& to, float* y) {
  const int64_t top = block_row * w.blockrows, first = w.indptr[block_row], size = w.blockrows * 4;
  for (int64_t row = 0; row < w.blockrows && top + row < w.rows; row += kPanelRows) {
    const TallQuads<Index> q{indices + first, w.indptr[block_row + 1] - first,
                             static_cast<const uint8_t*>(w.data) + first * size + row * 4, size,
                             w.blockrows - row < kPanelRows ? w.blockrows - row : kPanelRows};
    const int64_t at = top + row, rows = w.rows - at < q.rows ? w.rows - at : q.rows;
    int_bsr_parts<kTwoDigits, kPanelSlices>(q, a, mask, to, 0, rows, w.scales + at, y + at);
  }
}

// Blocks of kRows x 4 that are part of a vector: some at a time. ends: [runs][kRows]
template <bool kTwoDigits, int kRows>
__attribute__((flatten)) inline void int_bsr_small(const Quads& q, const QuantizedTiles& a, uint32_t mask, uint32_t* ends,
                                                       uint32_t* products, uint32_t* quads, float* y) {
  using D = Dot<8, kTwoDigits>;
  constexpr int kBlocks = kLanes / kRows;
  const int64_t count = q.count;
  const uint32_t* columns = q.columns;
  const int32_t* starts = a.starts;
  uint32_t* planes[2] = {quads, quads + count + 4};
  for (int p = 0; p < D::kPlanes; ++p) {
    const uint8_t* from = a.quads + p * 4;
    for (int64_t i = 0; i < count; ++i) std::memcpy(planes[p] + i, from + columns[i] * (D::kPlanes * 4), 4);
  }
  const auto meet = [&](int64_t i, const uint8_t* codes, uint32_t* out) ALWAYS_INLINE {
    typename D::Digits digits;
    if constexpr (D::kPlanes == 1) {
      digits = {spread_quads<kBlocks>(planes[0] + i)};
    } else {
      digits = {spread_quads<kBlocks>(planes[0] + i), spread_quads<kBlocks>(planes[1] + i)};
    }
    D dot;
    typename D::Wide wide;
    dot.start(zero_i32(), wide);
    dot.add(flip(load_codes(codes), mask), digits);
    dot.flush(wide);
    store_i32(reinterpret_cast<int32_t*>(out), dot.total(wide));
  };
  int64_t i = 0;
  for (; i + kBlocks <= count; i += kBlocks) {
    meet(i, q.codes + i * kRows * 4, products + i * kRows);
  }
  if (i < q.count) {  // through a scratch: nothing is read past the end
    uint8_t codes[kLanes * 4] = {};
    std::memcpy(codes, q.codes + i * kRows * 4, static_cast<size_t>((q.count - i) * kRows * 4));
    meet(i, codes, products + i * kRows);
  }
  uint32_t sums[kRows] = {}, correction = 0;
  int64_t run = 0;
  for (i = 0; i < count; ++i) {
    const uint32_t column = columns[i];
    correction += static_cast<uint32_t>(starts[column]);
    for (int r = 0; r < kRows; ++r) {
      sums[r] += products[i * kRows + r];
      ends[run * kRows + r] = sums[r] + correction;
    }
    run += (column ^ columns[i + 1]) >= kBlockQuads;
  }
  uint32_t before[kRows] = {};
  float out[kRows] = {};
  for (run = 0; run < q.runs; ++run) {
    const float scale = a.steps[q.blocks[run]];
    for (int r = 0; r < kRows; ++r) {
      out[r] += static_cast<float>(static_cast<int32_t>(ends[run * kRows + r] - before[r])) * scale;
      before[r] = ends[run * kRows + r];
    }
  }
  for (int r = 0; r < kRows; ++r) y[r] = out[r];
}

// Whether the rows of blocks that rest fill vectors, or parts of one that are side by side.
inline bool is_tall(const BlockSparse& w) { return w.blockrows % kLanes == 0; }
inline bool is_small(const BlockSparse& w) { return kLanes > w.blockrows && (w.blockrows == 4 || w.blockrows == 8); }

template <bool kTwoDigits>
inline void int_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const QuantizedTiles& a, uint8_t* scratch, float* y) {
  const int64_t runs = ceil_div(w.cols, kBlock), most = ceil_div(w.cols, 4);
  Quads q = carve_quads(scratch, w.cols);
  RunSums to;
  to.steps = reinterpret_cast<float*>(q.starts + (runs + 1) * 16);
  to.sums = reinterpret_cast<int32_t*>(to.steps + runs + 1);
  const bool whole = has_quads(w) && w.blockcols == 4, tall = whole && is_tall(w), small = whole && is_small(w);
  const uint32_t mask = (0x80 ^ static_cast<uint32_t>(kOffset<8>)) * 0x01010101u;
  for (int64_t b = begin; b < end; ++b) {
    if (tall) {
      w.wide_indices ? int_bsr_tall<kTwoDigits>(w, static_cast<const uint32_t*>(w.indices), b, a, mask, to, y)
                     : int_bsr_tall<kTwoDigits>(w, static_cast<const uint16_t*>(w.indices), b, a, mask, to, y);
      continue;
    }
    for_quads(w, b, q, small, [&](int64_t row) ALWAYS_INLINE {
      const int64_t rows = w.rows - row < q.rows ? w.rows - row : q.rows;
      if (!small) {
        const TallQuads<uint32_t> gathered{q.columns, q.count, q.codes, kPanelRows * 4, kPanelRows};
        int_bsr_parts<kTwoDigits, kPanelSlices>(gathered, a, mask, to, 0, rows, w.scales + row, y + row);
        return;
      }
      fetch_next_blocks(q, q.count * q.rows * 4);
      auto* products = reinterpret_cast<uint32_t*>(q.panels);  // [count][R] and [2][count + 4], where panels are not needed
      uint32_t *quads = products + (most + kLanes) * 8, *ends = reinterpret_cast<uint32_t*>(to.sums);
      float out[8];
      if constexpr (kLanes > 4) {
        if (w.blockrows == 4) int_bsr_small<kTwoDigits, 4>(q, a, mask, ends, products, quads, out);
      }
      if constexpr (kLanes > 8) {
        if (w.blockrows == 8) int_bsr_small<kTwoDigits, 8>(q, a, mask, ends, products, quads, out);
      }
      for (int64_t r = 0; r < rows; ++r) y[row + r] = 0.0f + out[r] * w.scales[row + r];
    });
  }
}

void matmul_int_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const QuantizedTiles& a, bool two_digits,
                        uint8_t* scratch, float* y) {
  (two_digits ? int_bsr_row<true> : int_bsr_row<false>)(w, begin, end, a, scratch, y);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
