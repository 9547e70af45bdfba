// matmul_int: y = x w^T for prepacked integer weights and integer activations.
//
// Lanes are the rows of a panel; one word of codes meets one broadcast quad of activations, so there are no
// horizontal sums. Up to kMaxRows rows of x share the unpacked codes. Bound by memory for small batches: each
// panel is read once per kMaxRows rows of x, from cache after the first time.
//
//   y[m][n] = sum over groups of scale * (sum over the group's segments of float(t) * as),
//   t = sum over the segment of (code - zero) * a, exact in int32
//
// in ascending order, every float operation rounded on its own: the promise of docs/formats.md, "Products".
#pragma once

#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kSlices = static_cast<int>(kPanelRows) / kLanes;  // vectors that hold one row of a panel
constexpr int kAhead = 4096;                                    // bytes of prefetch

inline F32 load_scales(const DenseInt& w, int64_t at) {
  return w.half_scales ? load_half(static_cast<const uint16_t*>(w.scales) + at)
                       : load_f32(static_cast<const float*>(w.scales) + at);
}

// Stores the lanes of a panel that are rows of w.
inline void store_panel(const F32* y, int64_t rows, float* out) {
  if (rows >= kPanelRows) {
    for (int s = 0; s < kSlices; ++s) store_f32(out + s * kLanes, y[s]);
    return;
  }
  float all[kPanelRows];
  for (int s = 0; s < kSlices; ++s) store_f32(all + s * kLanes, y[s]);
  for (int64_t i = 0; i < rows; ++i) out[i] = all[i];
}

// One word of a panel against kRows rows of x. `quad` is the offset in bytes of the word's first quad within a row of planes.
// Two chains of sums hide the latency of a dot product where there are registers for them.
template <int kBits, int kChain, int kRows, int kChains, class D>
__attribute__((always_inline)) inline void add_word(const uint8_t* codes, uint32_t mask, const QuantizedRows& a,
                                                    int64_t row, int64_t quad, D (&sums)[kRows][kSlices][kChains]) {
  constexpr int kPerByte = 8 / kBits, kWords = static_cast<int>(kBlock) / (4 * kPerByte);
  prefetch(codes + kAhead);
  unroll<kSlices>([&](auto s) {
    Codes word = load_codes(codes + s * kLanes * 4);
    if constexpr (kBits == 8) word = flip(word, mask);
    unroll<kPerByte>([&](auto part) {
      constexpr int kSum = (kPerByte == 2 ? decltype(part){} : kChain) % kChains;
      const Codes bytes = bytes_of<kBits>(word, part);
      unroll<kRows>([&](auto m) {
        const int64_t at = (row + m) * a.padded + quad + part * kWords * 4;
        sums[m][s][kSum].add(bytes, a.even + at, a.odd + at);
      });
    });
  });
}

// float(t) * as of one segment, added to `sum`. Columns k .. stop, all in one block.
template <int kBits, bool kTwoDigits, int kRows>
__attribute__((always_inline)) inline void add_segment(const DenseInt& w, const QuantizedRows& a, int64_t row,
                                                       int64_t k, int64_t stop, int64_t segment,
                                                       const I32 (&zero)[kSlices], F32 (&sum)[kRows][kSlices]) {
  constexpr int64_t kColsPerWord = 32 / kBits, kPanelWord = kPanelRows * 4;
  constexpr int kChains = kRows * kSlices <= 4 ? 2 : 1;
  Dot<kTwoDigits> dots[kRows][kSlices][kChains];
  unroll<kRows>([&](auto m) {
    unroll<kSlices>([&](auto s) { unroll<kChains>([&](auto chain) { dots[m][s][chain].clear(); }); });
  });
  const uint32_t mask = w.flip * 0x01010101u;
  const int64_t block = k / kBlock, first = block * (kBlock / kColsPerWord), last = ceil_div(stop, kColsPerWord);
  int64_t word = k / kColsPerWord;
  const uint8_t* codes = w.codes + word * kPanelWord;
  int64_t quad = block * kBlock + (word - first) * 4;
  for (; word + 1 < last; word += 2, codes += 2 * kPanelWord, quad += 8) {
    add_word<kBits, 0>(codes, mask, a, row, quad, dots);
    add_word<kBits, 1>(codes + kPanelWord, mask, a, row, quad + 4, dots);
  }
  if (word < last) add_word<kBits, 0>(codes, mask, a, row, quad, dots);

  unroll<kRows>([&](auto m) {
    const I32 total = set_i32(a.sums[(row + m) * a.segments + k / segment]);
    const F32 scale = set_f32(a.scales[(row + m) * a.blocks + block]);
    unroll<kSlices>([&](auto s) {
      if constexpr (kChains == 2) dots[m][s][0].merge(dots[m][s][1]);
      const I32 t = sub(dots[m][s][0].total(), mul(zero[s], total));
      sum[m][s] = add(sum[m][s], mul(to_f32(t), scale));
    });
  });
}

template <int kBits, bool kTwoDigits, int kRows>
inline void panel_rows(const DenseInt& w, const QuantizedRows& a, int64_t row, int64_t segment, float* y,
                       int64_t y_stride) {
  const int64_t groups = groups_of(w);
  F32 result[kRows][kSlices];
  unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { result[m][s] = zero_f32(); }); });
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t end = (group + 1) * w.group < w.cols ? (group + 1) * w.group : w.cols;
    F32 sum[kRows][kSlices];
    unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { sum[m][s] = zero_f32(); }); });
    I32 zero[kSlices];
    unroll<kSlices>([&](auto s) {
      zero[s] = w.zeros ? load_u8(w.zeros + group * kPanelRows + s * kLanes) : set_i32(1 << (kBits - 1));
    });
    for (int64_t k = group * w.group; k < end; k += segment) {
      const int64_t stop = k + segment < end ? k + segment : end;
      add_segment<kBits, kTwoDigits>(w, a, row, k, stop, segment, zero, sum);
    }
    unroll<kSlices>([&](auto s) {
      const F32 scale = load_scales(w, group * kPanelRows + s * kLanes);
      unroll<kRows>([&](auto m) { result[m][s] = add(result[m][s], mul(sum[m][s], scale)); });
    });
  }
  unroll<kRows>([&](auto m) { store_panel(result[m], w.rows, y + (row + m) * y_stride); });
}

template <int kBits, bool kTwoDigits, int kRows>
inline void panel(const DenseInt& w, const QuantizedRows& a, int64_t batch, int64_t segment, float* y,
                  int64_t y_stride) {
  int64_t row = 0;
  for (; row + kRows <= batch; row += kRows) {
    panel_rows<kBits, kTwoDigits, kRows>(w, a, row, segment, y, y_stride);
  }
  if constexpr (kRows > 1) {
    if (row < batch) {
      QuantizedRows rest = a;
      rest.even += row * a.padded;
      rest.odd += row * a.padded;
      rest.scales += row * a.blocks;
      rest.sums += row * a.segments;
      panel<kBits, kTwoDigits, kRows - 1>(w, rest, batch - row, segment, y + row * y_stride, y_stride);
    }
  }
}

void matmul_int(const DenseInt& w, QuantizedRows a, int64_t batch, int64_t segment, bool two_digits, float* y,
                int64_t y_stride) {
  if (w.bits == 8) {
    two_digits ? panel<8, true, kMaxRows>(w, a, batch, segment, y, y_stride)
               : panel<8, false, kMaxRows>(w, a, batch, segment, y, y_stride);
  } else {
    two_digits ? panel<4, true, kMaxRows>(w, a, batch, segment, y, y_stride)
               : panel<4, false, kMaxRows>(w, a, batch, segment, y, y_stride);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
