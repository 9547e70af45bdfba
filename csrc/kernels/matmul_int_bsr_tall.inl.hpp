// Tiles of x times blocks whose rows fill vectors: lanes are rows of w, the quads of a run stay in registers while all rows of
// the tile meet them, and no sum is ever transposed.
//
// A run has 3 quads where a tenth of the blocks is stored. Its length is a constant of the loop over the rows of x, so that it
// costs one mispredicted jump a run, however many these rows are.
#pragma once

#include "kernels/bsr_quads.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kMostQuads = kRegisters / 2 < 8 ? kRegisters / 2 : 8;  // of a run that are met together
static_assert(kMostQuads == 8);

// body(Index<count>{}), 1 <= count <= kMostQuads
template <int kCount = 1, class Body>
ALWAYS_INLINE inline void with_quads(int64_t count, const Body& body) {
  if constexpr (kCount < kMostQuads) {
    if (count > kCount) return with_quads<kCount + 1>(count, body);
  }
  body(Index<kCount>{});
}

// Some quads of a run, of a vector of rows, and where the sums of these rows are, 16 apart for each row of x.
struct QuadsOfRun {
  const uint8_t* codes;
  const int64_t* offsets;
  const uint32_t* columns;
  const float* steps;
  int32_t* parts;
  float* sums;
};

// sums[m] += float(t) * as for all rows of x; of a run that goes on, parts[m] += t instead.
template <bool kTwoDigits, int kQuads, bool kWhole>
__attribute__((flatten)) inline void meet_quads(const QuadsOfRun& q, const LaneTiles& a) {
  using D = SignedDot<kTwoDigits>;
  const int64_t plane = a.lanes * 4, batch = a.batch;
  typename D::Weights weights[kQuads];
  const uint8_t* quads[kQuads];
  I32 start = zero_i32();
  unroll<kQuads>([&](auto j) ALWAYS_INLINE {
    const uint8_t* codes = q.codes + q.offsets[j];
    weights[j] = D::load_weights(codes);
    quads[j] = a.quads + q.columns[j] * (D::kPlanes * plane);
    if (kRaised) start = add_bytes(start, load_codes(codes));
    prefetch(codes + kQuadsAhead);
  });
  if (kRaised) start = mul(start, set_i32(-kRaised));
  for (int64_t m = 0; m < batch; ++m) {
    D dot;
    dot.start(start);
    unroll<kQuads>([&](auto j) ALWAYS_INLINE { dot.add(D::broadcast(quads[j] + m * 4, plane), weights[j]); });
    if constexpr (kWhole) {
      float* sum = q.sums + m * kPanelRows;
      store_f32(sum, add(load_f32(sum), mul(to_f32(dot.total()), set_f32(q.steps[m]))));
    } else {
      int32_t* part = q.parts + m * kPanelRows;
      store_i32(part, add(load_i32(part), dot.total()));
    }
  }
}

template <bool kTwoDigits>
inline void meet_run(QuadsOfRun q, int64_t count, const LaneTiles& a) {
  if (count <= kMostQuads) {
    return with_quads(count, [&](auto quads) ALWAYS_INLINE { meet_quads<kTwoDigits, decltype(quads){}, true>(q, a); });
  }
  for (int64_t m = 0; m < a.batch; ++m) store_i32(q.parts + m * kPanelRows, zero_i32());
  for (int64_t some; count > 0; count -= some, q.offsets += some, q.columns += some) {
    some = count < kMostQuads ? count : kMostQuads;
    with_quads(some, [&](auto quads) ALWAYS_INLINE { meet_quads<kTwoDigits, decltype(quads){}, false>(q, a); });
  }
  for (int64_t m = 0; m < a.batch; ++m) {
    float* sum = q.sums + m * kPanelRows;
    store_f32(sum, add(load_f32(sum), mul(to_f32(load_i32(q.parts + m * kPanelRows)), set_f32(q.steps[m]))));
  }
}

// y[m][r] = sums[m][r] * scales[r] for `rows` rows of w, from +0 on: a negative scale must not make -0.
inline void store_scaled(const float* sums, const float* scales, int64_t rows, int64_t batch, float* y, int64_t y_stride) {
  for (int64_t m = 0; m < batch; ++m, sums += kPanelRows, y += y_stride) {
    int64_t r = 0;
    for (; r + kLanes <= rows; r += kLanes) store_f32(y + r, add(zero_f32(), mul(load_f32(sums + r), load_f32(scales + r))));
    for (; r < rows; ++r) y[r] = 0.0f + sums[r] * scales[r];
  }
}

template <bool kTwoDigits>
inline void int_bsr_tall_tile(const BlockSparse& w, int64_t begin, int64_t end, const LaneTiles& a, uint8_t* scratch, float* y,
                              int64_t y_stride) {
  Quads q = carve_quads(scratch, w.cols);
  auto* sums = reinterpret_cast<float*>(scratch + int_bsr_scratch(w.cols));
  auto* parts = reinterpret_cast<int32_t*>(sums + a.batch * kPanelRows);
  const bool in_place = has_quads(w) && w.blockcols == 4;
  for (int64_t b = begin; b < end; ++b) {
    for_quads(w, b, q, in_place, [&](int64_t row) ALWAYS_INLINE {
      for (int64_t i = 0; i < a.batch * kPanelRows; ++i) sums[i] = 0.0f;
      for (int64_t r = 0; r < q.rows; r += kLanes) {
        int64_t first = 0;
        for (int64_t run = 0; run < q.runs; first = q.ends[run++]) {
          meet_run<kTwoDigits>({q.codes + r * 4, q.offsets + first, q.columns + first, a.steps + q.blocks[run] * a.lanes, parts + r,
                                sums + r},
                               q.ends[run] - first, a);
        }
      }
      store_scaled(sums, w.scales + row, w.rows - row < q.rows ? w.rows - row : q.rows, a.batch, y + row, y_stride);
    });
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
