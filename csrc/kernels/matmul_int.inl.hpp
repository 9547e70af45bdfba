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

// One segment of one panel against kRows rows of x. Two chains of sums hide the latency of a dot product.
template <int kBits, bool kTwoDigits, int kRows>
struct Segment {
  static constexpr int kChains = kRows * kSlices <= 4 ? 2 : 1;
  Dot<kTwoDigits> sums[kRows][kSlices][kChains];

  void clear() {
    for (auto& row : sums)
      for (auto& slice : row)
        for (auto& chain : slice) chain.clear();
  }

  // `quad` is the offset in bytes of the word's first quad within a row of planes.
  void add_word(const uint8_t* codes, uint32_t mask, const QuantizedRows& a, int64_t row, int64_t quad, int chain) {
    constexpr int kPerByte = 8 / kBits, kWords = static_cast<int>(kBlock) / (4 * kPerByte);
    prefetch(codes + kAhead);
    for (int s = 0; s < kSlices; ++s) {
      Codes word = load_codes(codes + s * kLanes * 4);
      if (kBits == 8) word = flip(word, mask);
      for (int part = 0; part < kPerByte; ++part) {
        const Codes bytes = bytes_of<kBits>(word, part);
        for (int m = 0; m < kRows; ++m) {
          const int64_t at = (row + m) * a.padded + quad + part * kWords * 4;
          sums[m][s][kPerByte == 2 ? part % kChains : chain % kChains].add(bytes, a.even + at, a.odd + at);
        }
      }
    }
  }
};

template <class D, int kChains>
inline I32 total_of(D (&chains)[kChains]) {
  if constexpr (kChains == 2) chains[0].merge(chains[1]);
  return chains[0].total();
}

template <int kBits, bool kTwoDigits, int kRows>
inline void panel_rows(const DenseInt& w, const QuantizedRows& a, int64_t row, int64_t segment, float* y,
                       int64_t y_stride) {
  constexpr int64_t kColsPerWord = 32 / kBits, kWordsPerBlock = kBlock / kColsPerWord;
  const int64_t words = words_of(w), groups = groups_of(w);
  const uint32_t mask = w.flip * 0x01010101u;
  const I32 middle = set_i32(1 << (kBits - 1));
  F32 result[kRows][kSlices];
  for (auto& lanes : result)
    for (auto& slice : lanes) slice = zero_f32();

  for (int64_t group = 0; group < groups; ++group) {
    const int64_t end = (group + 1) * w.group < w.cols ? (group + 1) * w.group : w.cols;
    F32 sum[kRows][kSlices];
    for (auto& lanes : sum)
      for (auto& slice : lanes) slice = zero_f32();
    for (int64_t k = group * w.group; k < end; k += segment) {
      const int64_t stop = k + segment < end ? k + segment : end;
      const int64_t last = ceil_div(stop, kColsPerWord) < words ? ceil_div(stop, kColsPerWord) : words;
      const int64_t block = k / kBlock;
      int64_t word = k / kColsPerWord;
      Segment<kBits, kTwoDigits, kRows> dots;
      dots.clear();
      const int64_t quads = block * kBlock - block * kWordsPerBlock * 4;  // + 4 * word: the word's quad in its block
      for (; word + 1 < last; word += 2) {
        dots.add_word(w.codes + word * kPanelRows * 4, mask, a, row, quads + word * 4, 0);
        dots.add_word(w.codes + (word + 1) * kPanelRows * 4, mask, a, row, quads + word * 4 + 4, 1);
      }
      if (word < last) dots.add_word(w.codes + word * kPanelRows * 4, mask, a, row, quads + word * 4, 0);

      for (int s = 0; s < kSlices; ++s) {
        const I32 zero = w.zeros ? load_u8(w.zeros + group * kPanelRows + s * kLanes) : middle;
        for (int m = 0; m < kRows; ++m) {
          const I32 offset = mul(zero, set_i32(a.sums[(row + m) * a.segments + k / segment]));
          const F32 scale = set_f32(a.scales[(row + m) * a.blocks + block]);
          sum[m][s] = add(sum[m][s], mul(to_f32(sub(total_of(dots.sums[m][s]), offset)), scale));
        }
      }
    }
    for (int s = 0; s < kSlices; ++s) {
      const F32 scale = load_scales(w, group * kPanelRows + s * kLanes);
      for (int m = 0; m < kRows; ++m) result[m][s] = add(result[m][s], mul(sum[m][s], scale));
    }
  }
  for (int m = 0; m < kRows; ++m) store_panel(result[m], w.rows, y + (row + m) * y_stride);
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
