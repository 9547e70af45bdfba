// matmul_int_bsr: y = x w^T for block-sparse int8 or int4 weights and integer activations.
//
// The same arithmetic as matmul_int on the same codes, bit for bit: t is exact, and a block of 128 columns that holds no
// stored weight would add +0. One scale per row: y = (sum over blocks of float(t) * as) * scale.
//
// Where the rows of blocks fill vectors they are the lanes (matmul_int_bsr_tall.inl.hpp); here lanes are rows of x, and none is
// idle whatever the block.
#pragma once

#include "kernels/bsr_quads.inl.hpp"
#include "kernels/matmul_int_bsr_tall.inl.hpp"
#include "kernels/store_rows.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// starts[run][kRows], of rows that are products[quad][kRows].
template <int kRows>
inline void sum_runs(const Quads& q, const int32_t* products) {
  int64_t i = 0;
  for (int64_t run = 0; run < q.runs; ++run) {
    int32_t sums[kRows] = {};
    for (const int64_t end = q.ends[run]; i < end; ++i) {
      for (int r = 0; r < kRows; ++r) sums[r] += products[i * kRows + r];
    }
    for (int r = 0; r < kRows; ++r) q.starts[run * kPanelRows + r] = -kRaised * sums[r];
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
        store_i32(to + row, mul(sum, set_i32(-kRaised)));
      }
      continue;
    }
    for (int64_t r = 0; r < q.rows; ++r) {
      int32_t sum = 0;
      for (int64_t j = from; j < i; ++j) {
        const auto* codes = reinterpret_cast<const int8_t*>(q.codes + q.offsets[j] + r * q.stride);
        sum += codes[0] + codes[1] + codes[2] + codes[3];
      }
      to[r] = -kRaised * sum;
    }
  }
}

// sums[kRows][lanes] of rows `row` and up times kVectors vectors of x: sums over runs of float(t) * as.
template <bool kTwoDigits, int kRows, int kVectors>
__attribute__((flatten)) inline void int_bsr_part(const Quads& q, int64_t row, const uint8_t* quads, const float* steps,
                                                  int64_t lanes, float* sums) {
  using D = SignedDot<kTwoDigits>;
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
      const I32 start = set_i32(kRaised ? q.starts[run * kPanelRows + row + r] : 0);
      unroll<kVectors>([&](auto v) { dots[r][v].start(start); });
    });
    const int64_t end = q.ends[run];
    for (; i < end; ++i) {
      const uint8_t* at = quads + columns[i] * (D::kPlanes * lanes * 4);
      const uint8_t* codes = rows + offsets[i];
      typename D::Activations a[kVectors];
      unroll<kVectors>([&](auto v) ALWAYS_INLINE { a[v] = D::load(at + v * kLanes * 4, lanes * 4); });
      unroll<kRows>([&](auto r) ALWAYS_INLINE {
        const auto weights = D::broadcast_weights(codes + r * stride);
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
  using D = SignedDot<kTwoDigits>;
  constexpr int kRows = kRegisters / 2 / kVectors / D::kRegisters;
  const int64_t apart = 2 * kPanelRows * a.lanes;
  auto* sums = reinterpret_cast<float*>(scratch + int_bsr_scratch(w.cols));
  Quads q = carve_quads(scratch, w.cols);
  int64_t held = 0;  // rows whose sums are not stored yet: enough for vectors of them
  for (int64_t b = begin; b < end; ++b) {
    for_quads(w, b, q, has_quads(w), [&](int64_t row) ALWAYS_INLINE {
      if (has_quads(w)) fetch_next_blocks(q, (w.indptr[b + 1] - w.indptr[b]) * w.blockrows * w.blockcols);
      if (kRaised) find_starts(q);
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

// Of 8 rows and more: with fewer, vectors of rows would gain nothing.
inline bool meets_tall(const BlockSparse& w) { return w.blockrows % 8 == 0 && w.blockrows % kLanes == 0; }

int64_t bsr_lanes(const BlockSparse& w, int64_t batch) { return meets_tall(w) ? batch : batch <= 16 ? 16 : kMostLanes; }

void matmul_int_bsr(const BlockSparse& w, int64_t begin, int64_t end, const LaneTiles& a, bool two_digits, uint8_t* scratch,
                    float* y, int64_t y_stride) {
  if (meets_tall(w)) {
    return (two_digits ? int_bsr_tall_tile<true> : int_bsr_tall_tile<false>)(w, begin, end, a, scratch, y, y_stride);
  }
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
  constexpr int kPlanes = SignedDot<kTwoDigits>::kPlanes;
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
        spread_digits<1, kPlanes, kRaised>(codes, quads, a.lanes * 4);
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
