// matmul_int_bsr: y = x w^T for block-sparse int8 or int4 weights and integer activations.
//
// The same arithmetic as matmul_int on the same codes, bit for bit: t is exact, and a block of 128 columns that holds no
// stored weight would add +0. One scale per row: y = (sum over blocks of float(t) * as) * scale.
//
// Weights are met as quads: 4 columns of some rows, where they rest if blocks have whole quads of int8, else gathered into
// panels of 16 rows. Of a single row of x, lanes are rows of w; of a tile of x, they are its rows, and no lane is idle
// whatever the block. Quads of one block of 128 columns are a run.
#pragma once

#include "kernels/matmul_f32_bsr.inl.hpp"  // index_at, store_rows
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int64_t kBlockQuads = kBlock / 4;
constexpr int32_t kLaneBias = Dot<8, false>::kByteDigits ? 128 - kOffset<8> : 0;  // what digits of LaneDot are raised by

// Up to 16 rows of one block row.
struct Quads {
  const uint8_t* codes;  // code c of quad i, row r: codes[offsets[i] + r * stride + c]
  int64_t stride;
  int64_t rows, count, runs;
  bool rest_alone;       // the rows are all of their blocks
  uint32_t* columns;     // [count + 1] column / 4, rising; the last one is in no block
  int64_t* offsets;      // [count]
  uint32_t* ends;        // [runs] the first quad behind a run
  uint32_t* blocks;      // [runs]
  int32_t* starts;       // [runs][16] -kLaneBias * the sum of the codes
  uint8_t* panels;       // [count][16][4] if they are gathered
};

// Parts of the scratch.
inline Quads carve_quads(uint8_t* scratch, int64_t cols) {
  const int64_t most = ceil_div(cols, 4), runs = ceil_div(cols, kBlock);
  Quads q{};
  q.panels = scratch;
  q.offsets = reinterpret_cast<int64_t*>(q.panels + most * 64 + 1024);
  q.columns = reinterpret_cast<uint32_t*>(q.offsets + most);
  q.ends = q.columns + most + 1;
  q.blocks = q.ends + runs + 1;
  q.starts = reinterpret_cast<int32_t*>(q.blocks + runs + 1);
  return q;
}

// Whether quads are met where they rest.
inline bool in_place(const BlockSparse& w) { return w.values == Values::kInt8 && w.blockcols % 4 == 0; }

// Of rows `row` and up of the blocks first .. last - 1, whose data is fetched for the next block row meanwhile.
template <class Index>
inline void place_quads(const BlockSparse& w, const Index* indices, int64_t first, int64_t last, int64_t row, Quads& q) {
  const int64_t size = w.blockrows * w.blockcols, per_block = w.blockcols / 4, most = ceil_div(w.cols, 4), blocks = last - first;
  uint32_t* columns = q.columns;
  int64_t* offsets = q.offsets;
  q.codes = static_cast<const uint8_t*>(w.data) + first * size + row * w.blockcols;
  q.stride = w.blockcols;
  indices += first;
  if (per_block == 1) {
    for (int64_t i = 0; i < blocks; ++i) columns[i] = indices[i];
    for (int64_t i = 0; i < blocks; ++i) offsets[i] = i * size;
    q.count = blocks;
  } else {
    for (int64_t i = 0; i < blocks; ++i, columns += per_block, offsets += per_block) {
      for (int64_t j = 0; j < per_block; ++j) {
        columns[j] = static_cast<uint32_t>(indices[i] * per_block + j);
        offsets[j] = i * size + 4 * j;
      }
    }
    q.count = blocks * per_block;
    while (q.count > 0 && q.columns[q.count - 1] >= most) --q.count;  // a block over the edge
  }
  for (const uint8_t *next = q.codes + blocks * size, *stop = next + blocks * size; next < stop; next += 64) prefetch(next);
}

inline void gather_quads(const BlockSparse& w, int64_t first, int64_t last, int64_t row, Quads& q) {
  const int64_t cols = w.blockcols, size = w.blockrows * cols;
  q.codes = q.panels;
  q.stride = 4;
  q.count = 0;
  uint32_t open = ~0u;
  for (int64_t i = first; i < last; ++i) {
    const int64_t k = index_at(w, i) * cols, stop = w.cols - k < cols ? w.cols - k : cols;
    for (int64_t c = 0; c < stop; ++c) {
      const auto column = static_cast<uint32_t>((k + c) / 4);
      if (column != open) {
        open = column;
        q.columns[q.count] = column;
        q.offsets[q.count] = q.count * 64;
        std::memset(q.panels + q.count++ * 64, 0, 64);
      }
      uint8_t* to = q.panels + (q.count - 1) * 64 + (k + c) % 4;
      const int64_t from = row * cols + c;
      if (w.values == Values::kInt8) {
        const uint8_t* data = static_cast<const uint8_t*>(w.data) + i * size + from;
        for (int64_t r = 0; r < q.rows; ++r) to[r * 4] = data[r * cols];
      } else {
        const uint8_t* data = static_cast<const uint8_t*>(w.data) + i * size / 2;
        for (int64_t r = 0; r < q.rows; ++r) {
          const int64_t at = from + r * cols;
          to[r * 4] = static_cast<uint8_t>((data[at / 2] >> (at % 2 * 4) & 15) - 8);
        }
      }
    }
  }
}

// Where runs end: without a branch, which could not be foreseen.
inline void find_runs(Quads& q) {
  uint32_t *columns = q.columns, *ends = q.ends, *blocks = q.blocks;
  const int64_t count = q.count;
  columns[count] = ~0u;
  int64_t runs = 0;
  uint32_t block = columns[0] / static_cast<uint32_t>(kBlockQuads);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t next = columns[i + 1] / static_cast<uint32_t>(kBlockQuads);
    ends[runs] = static_cast<uint32_t>(i + 1);
    blocks[runs] = block;
    runs += block != next;
    block = next;
  }
  q.runs = runs;
}

// Calls body(q, row) for the rows of one block row, 16 at a time.
template <class Body>
inline void for_quads(const BlockSparse& w, int64_t block_row, Quads& q, bool where_they_rest, const Body& body) {
  const int64_t top = block_row * w.blockrows, first = w.indptr[block_row], last = w.indptr[block_row + 1];
  for (int64_t row = 0; row < w.blockrows && top + row < w.rows; row += kPanelRows) {
    q.rows = w.blockrows - row < kPanelRows ? w.blockrows - row : kPanelRows;
    q.rest_alone = q.rows == w.blockrows;
    if (!where_they_rest) {
      gather_quads(w, first, last, row, q);
    } else if (w.wide_indices) {
      place_quads(w, static_cast<const uint32_t*>(w.indices), first, last, row, q);
    } else {
      place_quads(w, static_cast<const uint16_t*>(w.indices), first, last, row, q);
    }
    find_runs(q);
    body(top + row);
  }
}

// A single row of x.

// What the runs of a block row sum to, ever larger sums, so that no loop ends with a run.
struct RunSums {
  int32_t* sums;         // [runs][rows]
  int32_t* corrections;  // [runs]: -128 * the sum of the activations that met a weight, as in QuantizedTiles.starts
};

// sums[kRows] of x times rows: y[r] = sum over runs of float(t) * as.
template <bool kTwoDigits, int kSlices>
__attribute__((flatten)) inline void int_bsr_slices(const Quads& q, const uint8_t* codes, const QuantizedTiles& a, uint32_t mask,
                                                    const RunSums& to, F32 (&y)[kSlices]) {
  using D = Dot<8, kTwoDigits>;
  const uint32_t* columns = q.columns;  // what the loop reads, apart from what it writes
  const int64_t *offsets = q.offsets, count = q.count;
  const uint8_t* quads = a.quads;
  const int32_t* starts = a.starts;
  int32_t *out = to.sums, *corrections = to.corrections;
  I32 sums[kSlices];
  unroll<kSlices>([&](auto s) { sums[s] = zero_i32(); });
  int32_t correction = 0;
  int64_t run = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t column = columns[i];
    const uint8_t* quad = quads + column * (D::kPlanes * 4);
    const uint8_t* at = codes + offsets[i];
    const auto digits = D::load(quad, quad + 4);
    correction += starts[column];
    unroll<kSlices>([&](auto s) ALWAYS_INLINE {
      D dot;
      typename D::Wide wide;
      dot.start(zero_i32(), wide);
      dot.add(flip(load_codes(at + s * kLanes * 4), mask), digits);
      dot.flush(wide);
      sums[s] = add(sums[s], dot.total(wide));
      store_i32(out + run * kSlices * kLanes + s * kLanes, sums[s]);
    });
    corrections[run] = correction;
    run += (column ^ columns[i + 1]) >= kBlockQuads;
  }
  I32 before[kSlices];
  unroll<kSlices>([&](auto s) {
    before[s] = zero_i32();
    y[s] = zero_f32();
  });
  int32_t before_correction = 0;
  for (run = 0; run < q.runs; ++run) {
    const F32 scale = set_f32(a.steps[q.blocks[run]]);
    const I32 corrected = set_i32(to.corrections[run] - before_correction);
    before_correction = to.corrections[run];
    unroll<kSlices>([&](auto s) ALWAYS_INLINE {
      const I32 sum = load_i32(to.sums + run * kSlices * kLanes + s * kLanes);
      y[s] = add(y[s], mul(to_f32(add(sub(sum, before[s]), corrected)), scale));
      before[s] = sum;
    });
  }
}

template <bool kTwoDigits, int kSlices>
inline void int_bsr_parts(const Quads& q, const QuantizedTiles& a, uint32_t mask, const RunSums& to, int64_t row, int64_t rows,
                          const float* scales, float* y) {
  for (; row + kSlices * kLanes <= q.rows; row += kSlices * kLanes) {
    F32 sums[kSlices];
    float out[kSlices * kLanes];
    int_bsr_slices<kTwoDigits, kSlices>(q, q.codes + row * q.stride, a, mask, to, sums);
    unroll<kSlices>([&](auto s) { store_f32(out + s * kLanes, sums[s]); });
    for (int64_t r = row; r < row + kSlices * kLanes && r < rows; ++r) y[r] = 0.0f + out[r - row] * scales[r];
  }
  if constexpr (kSlices > 1) int_bsr_parts<kTwoDigits, kSlices / 2>(q, a, mask, to, row, rows, scales, y);
}

// Blocks of kRows x 4 that are part of a vector: some at a time.
template <bool kTwoDigits, int kRows>
__attribute__((flatten)) inline void int_bsr_small(const Quads& q, const QuantizedTiles& a, uint32_t mask, const RunSums& to,
                                                   int32_t* products, uint32_t* quads, float* y) {
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
  const auto meet = [&](int64_t i, const uint8_t* codes, int32_t* out) ALWAYS_INLINE {
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
    store_i32(out, dot.total(wide));
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
  int32_t sums[kRows] = {}, correction = 0, *ends = to.sums;
  int64_t run = 0;
  for (i = 0; i < count; ++i) {
    const uint32_t column = columns[i];
    correction += starts[column];
    for (int r = 0; r < kRows; ++r) {
      sums[r] += products[i * kRows + r];
      ends[run * kRows + r] = sums[r] + correction;
    }
    run += (column ^ columns[i + 1]) >= kBlockQuads;
  }
  int32_t before[kRows] = {};
  float out[kRows] = {};
  for (run = 0; run < q.runs; ++run) {
    const float scale = a.steps[q.blocks[run]];
    for (int r = 0; r < kRows; ++r) {
      out[r] += static_cast<float>(to.sums[run * kRows + r] - before[r]) * scale;
      before[r] = to.sums[run * kRows + r];
    }
  }
  for (int r = 0; r < kRows; ++r) y[r] = out[r];
}

template <bool kTwoDigits>
inline void int_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const QuantizedTiles& a, uint8_t* scratch, float* y) {
  const int64_t runs = ceil_div(w.cols, kBlock), most = ceil_div(w.cols, 4);
  Quads q = carve_quads(scratch, w.cols);
  RunSums to;
  to.corrections = q.starts + (runs + 1) * 16;
  to.sums = to.corrections + runs + 1;
  const bool rows_fit = w.blockrows % kLanes == 0, small = w.blockrows == 4 || w.blockrows == 8;
  const bool rest = w.values == Values::kInt8 && w.blockcols == 4 && (rows_fit || small);
  const uint32_t mask = (0x80 ^ static_cast<uint32_t>(kOffset<8>)) * 0x01010101u;
  for (int64_t b = begin; b < end; ++b) {
    for_quads(w, b, q, rest, [&](int64_t row) ALWAYS_INLINE {
      const int64_t rows = w.rows - row < q.rows ? w.rows - row : q.rows;
      if (!rest) q.rows = kPanelRows;
      if (rest && !rows_fit) {
        auto* products = reinterpret_cast<int32_t*>(q.panels);  // [count][R] and [2][count + 4], where panels are not needed
        auto* quads = reinterpret_cast<uint32_t*>(products + (most + kLanes) * 8);
        float out[8];
        if constexpr (kLanes > 4) {
          if (w.blockrows == 4) int_bsr_small<kTwoDigits, 4>(q, a, mask, to, products, quads, out);
        }
        if constexpr (kLanes > 8) {
          if (w.blockrows == 8) int_bsr_small<kTwoDigits, 8>(q, a, mask, to, products, quads, out);
        }
        for (int64_t r = 0; r < rows; ++r) y[row + r] = 0.0f + out[r] * w.scales[row + r];
      } else {
        int_bsr_parts<kTwoDigits, kPanelSlices>(q, a, mask, to, 0, rows, w.scales + row, y + row);
      }
    });
  }
}

void matmul_int_bsr_row(const BlockSparse& w, int64_t begin, int64_t end, const QuantizedTiles& a, bool two_digits,
                        uint8_t* scratch, float* y) {
  (two_digits ? int_bsr_row<true> : int_bsr_row<false>)(w, begin, end, a, scratch, y);
}

// Tiles of x.

// starts[run][kRows], of rows that are products[quad][kRows].
template <int kRows>
inline void sum_runs(const Quads& q, const int32_t* products) {
  int64_t i = 0;
  for (int64_t run = 0; run < q.runs; ++run) {
    int32_t sums[kRows] = {};
    for (const int64_t end = q.ends[run]; i < end; ++i) {
      for (int r = 0; r < kRows; ++r) sums[r] += products[i * kRows + r];
    }
    for (int r = 0; r < kRows; ++r) q.starts[run * kPanelRows + r] = -kLaneBias * sums[r];
  }
}

// Of quads that rest side by side in blocks of 4 or 8 rows: some blocks at a time.
inline void find_starts_of_small(const Quads& q, int32_t* products) {
  const int64_t words = q.count * q.rows;
  int64_t i = 0;
  for (; i + kLanes <= words; i += kLanes) store_i32(products + i, add_bytes(zero_i32(), load_codes(q.codes + i * 4)));
  if (i < words) {
    uint8_t codes[kLanes * 4] = {};
    std::memcpy(codes, q.codes + i * 4, static_cast<size_t>((words - i) * 4));
    store_i32(products + i, add_bytes(zero_i32(), load_codes(codes)));
  }
  q.rows == 4 ? sum_runs<4>(q, products) : sum_runs<8>(q, products);
}

inline void find_starts(const Quads& q) {
  const bool whole = q.codes == q.panels || q.rows % kLanes == 0;
  if (q.stride == 4 && !whole && (q.rows == 4 || q.rows == 8) && q.rest_alone) {
    return find_starts_of_small(q, reinterpret_cast<int32_t*>(q.panels));  // where panels are not needed
  }
  int64_t i = 0;
  for (int64_t run = 0; run < q.runs; ++run) {
    int32_t* to = q.starts + run * kPanelRows;
    const int64_t from = i;
    i = q.ends[run];
    if (q.stride == 4 && whole) {
      for (int64_t row = 0; row < q.rows; row += kLanes) {
        I32 sum = zero_i32();
        for (int64_t j = from; j < i; ++j) sum = add_bytes(sum, load_codes(q.codes + q.offsets[j] + row * 4));
        store_i32(to + row, mul(sum, set_i32(-kLaneBias)));
      }
      continue;
    }
    for (int64_t r = 0; r < q.rows; ++r) {
      int32_t sum = 0;
      for (int64_t j = from; j < i; ++j) {
        const auto* codes = reinterpret_cast<const int8_t*>(q.codes + q.offsets[j] + r * q.stride);
        sum += codes[0] + codes[1] + codes[2] + codes[3];
      }
      to[r] = -kLaneBias * sum;
    }
  }
}

// sums[kRows][lanes] of rows `row` and up times kVectors vectors of x: sums over runs of float(t) * as.
template <bool kTwoDigits, int kRows, int kVectors>
__attribute__((flatten)) inline void int_bsr_part(const Quads& q, int64_t row, const uint8_t* quads, const float* steps,
                                                  int64_t lanes, float* sums) {
  using D = LaneDot<kTwoDigits>;
  unroll<kRows>([&](auto r) {
    unroll<kVectors>([&](auto v) { store_f32(sums + r * lanes + v * kLanes, zero_f32()); });
  });
  const uint32_t* columns = q.columns;
  const int64_t *offsets = q.offsets, stride = q.stride;
  const uint8_t* rows = q.codes + row * stride;
  int64_t i = 0;
  for (int64_t run = 0; run < q.runs; ++run) {
    D dots[kRows][kVectors];
    unroll<kRows>([&](auto r) {
      const I32 start = set_i32(kLaneBias ? q.starts[run * kPanelRows + row + r] : 0);
      unroll<kVectors>([&](auto v) { dots[r][v].start(start); });
    });
    const int64_t end = q.ends[run];
    for (; i < end; ++i) {
      const uint8_t* at = quads + columns[i] * (D::kPlanes * lanes * 4);
      const uint8_t* codes = rows + offsets[i];
      typename D::Lanes a[kVectors];
      unroll<kVectors>([&](auto v) ALWAYS_INLINE { a[v] = D::load(at + v * kLanes * 4, lanes * 4); });
      unroll<kRows>([&](auto r) ALWAYS_INLINE {
        const auto weights = D::load_weights(codes + r * stride);
        unroll<kVectors>([&](auto v) ALWAYS_INLINE { dots[r][v].add(a[v], weights); });
      });
    }
    const float* scales = steps + q.blocks[run] * lanes;
    unroll<kVectors>([&](auto v) {
      const F32 scale = load_f32(scales + v * kLanes);
      unroll<kRows>([&](auto r) {
        float* sum = sums + r * lanes + v * kLanes;
        store_f32(sum, add(load_f32(sum), mul(to_f32(dots[r][v].total()), scale)));
      });
    });
  }
}

template <bool kTwoDigits, int kRows, int kVectors>
inline void int_bsr_tile_rows(const Quads& q, int64_t row, int64_t rows, const uint8_t* quads, const float* steps, int64_t lanes,
                              float* sums) {
  for (; row + kRows <= rows; row += kRows) {
    int_bsr_part<kTwoDigits, kRows, kVectors>(q, row, quads, steps, lanes, sums + row * lanes);
  }
  if constexpr (kRows > 1) int_bsr_tile_rows<kTwoDigits, kRows / 2, kVectors>(q, row, rows, quads, steps, lanes, sums);
}

// Rows first .. first + rows - 1 of w: scales and stores their sums[tile][row][lanes]; a tile's are `apart`.
inline void store_tiles(const BlockSparse& w, const LaneTiles& a, int64_t first, int64_t rows, float* sums, int64_t apart,
                        float* y, int64_t y_stride) {
  for (int64_t m = 0; m < a.batch; m += a.lanes, sums += apart) {
    const int64_t batch = a.batch - m < a.lanes ? a.batch - m : a.lanes;
    for (int64_t r = 0; r < rows; ++r) {
      const F32 scale = set_f32(w.scales[first + r]);
      for (int64_t v = 0; v < batch; v += kLanes) {  // from +0 on: a negative scale must not make -0
        float* sum = sums + r * a.lanes + v;
        store_f32(sum, add(zero_f32(), mul(load_f32(sum), scale)));
      }
    }
    store_rows(sums, a.lanes, rows, batch, y + m * y_stride + first, y_stride);
  }
}

template <bool kTwoDigits, int kVectors>
inline void int_bsr_tiles(const BlockSparse& w, int64_t begin, int64_t end, const LaneTiles& a, uint8_t* scratch, float* y,
                          int64_t y_stride) {
  using D = LaneDot<kTwoDigits>;
  constexpr int kRows = kRegisters / 2 / kVectors / D::kRegisters;
  const int64_t apart = 2 * kPanelRows * a.lanes;
  auto* sums = reinterpret_cast<float*>(scratch + int_bsr_scratch(w.cols));
  Quads q = carve_quads(scratch, w.cols);
  int64_t held = 0;  // rows whose sums are not stored yet: enough for vectors of them
  for (int64_t b = begin; b < end; ++b) {
    for_quads(w, b, q, in_place(w), [&](int64_t row) ALWAYS_INLINE {
      if (kLaneBias) find_starts(q);
      const int64_t rows = w.rows - row < q.rows ? w.rows - row : q.rows;
      float* to = sums + held * a.lanes;
      for (int64_t m = 0; m < a.batch; m += a.lanes, to += apart) {
        const uint8_t* quads = a.quads + m * a.padded * D::kPlanes;
        const float* steps = a.steps + m * a.blocks;
        const int64_t batch = a.batch - m < a.lanes ? a.batch - m : a.lanes;
        for (int64_t v = 0; v < batch; v += kVectors * kLanes) {
          int_bsr_tile_rows<kTwoDigits, kRows, kVectors>(q, 0, rows, quads + v * 4, steps + v, a.lanes, to + v);
        }
      }
      held += rows;
      if (held < kPanelRows && row + rows < w.rows && (b + 1 < end || row + rows < (b + 1) * w.blockrows)) return;
      store_tiles(w, a, row + rows - held, held, sums, apart, y, y_stride);
      held = 0;
    });
  }
}

void matmul_int_bsr(const BlockSparse& w, int64_t begin, int64_t end, const LaneTiles& a, bool two_digits, uint8_t* scratch,
                    float* y, int64_t y_stride) {
  const auto tiles = [&](auto vectors) {
    constexpr int kVectors = decltype(vectors){};
    (two_digits ? int_bsr_tiles<true, kVectors> : int_bsr_tiles<false, kVectors>)(w, begin, end, a, scratch, y, y_stride);
  };
  a.lanes == kLanes || kLanes == 1 ? tiles(Index<1>{}) : tiles(Index<2>{});
}

// Units count the blocks of columns of each tile.
template <bool kTwoDigits>
inline void quantize_lanes_of(const float* x, int64_t cols, const LaneTiles& a, int64_t begin, int64_t end) {
  using D = Dot<8, kTwoDigits>;
  constexpr int kPlanes = LaneDot<kTwoDigits>::kPlanes;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / a.blocks * a.lanes, block = unit % a.blocks, k = block * kBlock;
    const int64_t width = cols - k < kBlock ? cols - k : kBlock, count = a.batch - row < a.lanes ? a.batch - row : a.lanes;
    uint8_t* quads = a.quads + (row * a.padded + k * a.lanes) * kPlanes;
    float* steps = a.steps + row * a.blocks + block * a.lanes;
    for (int64_t m = 0; m < a.lanes; ++m, quads += 4) {
      int16_t codes[kBlock] = {};
      float ragged[kBlock] = {}, scale = 0.0f;
      if (m < count) {
        const float* from = x + (row + m) * cols + k;
        if (width < kBlock) {
          for (int64_t i = 0; i < width; ++i) ragged[i] = from[i];
          from = ragged;
        }
        if (!quantize_block(from, kTwoDigits ? kTwoDigitLimit : kOneDigitLimit, codes, &scale)) {
          for (int64_t i = 0; i < kBlock; ++i) codes[i] = 0;
          scale = 0.0f;
          __atomic_store_n(a.finite + row + m, uint8_t{0}, __ATOMIC_RELAXED);
        }
      }
      steps[m] = scale;
      if constexpr (D::kByteDigits) {
        spread_digits<1, kPlanes, kLaneBias>(codes, quads, a.lanes * 4);
      } else {
        spread_pairs<1>(codes, quads, a.lanes * 4);
      }
    }
  }
}

void quantize_lanes(const float* x, int64_t cols, bool two_digits, const LaneTiles& a, int64_t begin, int64_t end) {
  (two_digits ? quantize_lanes_of<true> : quantize_lanes_of<false>)(x, cols, a, begin, end);
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
