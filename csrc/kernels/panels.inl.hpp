// Panels of prepacked integer weights as the kernels walk them: scales, zeros, minima and words of codes; and rows of y from there.
#pragma once

#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kPanelSlices = static_cast<int>(kPanelRows) / kLanes;  // vectors that hold one row of a panel
constexpr int kWordBytes = static_cast<int>(kPanelRows) * 4;  // a word of each row of a panel
constexpr int kAhead = 4096, kFarAhead = 8192;  // bytes of prefetch

// Of w.scales or w.minima.
inline F32 load_scales(const void* scales, bool half, int64_t at) {
  return half ? load_half(static_cast<const uint16_t*>(scales) + at) : load_f32(static_cast<const float*>(scales) + at);
}

// Stores the lanes of a panel that are rows of w.
inline void store_panel(const F32* y, int64_t rows, float* out) {
  if (rows >= kPanelRows) {
    for (int s = 0; s < kPanelSlices; ++s) store_f32(out + s * kLanes, y[s]);
    return;
  }
  float all[kPanelRows];
  for (int s = 0; s < kPanelSlices; ++s) store_f32(all + s * kLanes, y[s]);
  for (int64_t i = 0; i < rows; ++i) out[i] = all[i];
}

// Some panels of w that are multiplied together. One that is left alone stands for both of two, and is stored once.
struct Tile {
  const uint8_t* codes;
  const void* scales;
  const void* minima;     // or null
  const uint8_t* zeros;   // or null
  int64_t codes_stride;   // bytes from a panel to the next
  int64_t groups_stride;  // likewise scales, minima and zeros, in rows
  int64_t rows, cols, group;
  uint32_t flip;          // what a word of 8-bit codes is XORed with to be what Dot takes
  bool half_scales;

  // Up to `panels` panels from row `first` on.
  Tile(const DenseInt& w, int64_t first, int panels)
      : zeros(nullptr), cols(w.cols), group(w.group), half_scales(w.half_scales) {
    const int64_t panel = first / kPanelRows, panel_groups = groups_of(w) * kPanelRows;
    const int64_t panel_bytes = words_of(w) * kPanelRows * 4;
    codes = w.codes ? w.codes + panel * panel_bytes : nullptr;
    scales = scales_from(w, w.scales, panel * panel_groups);
    minima = scales_from(w, w.minima, panel * panel_groups);
    if (w.zeros) zeros = w.zeros + panel * panel_groups;
    rows = w.rows - first < panels * kPanelRows ? w.rows - first : panels * kPanelRows;
    codes_stride = rows > kPanelRows ? panel_bytes : 0;
    groups_stride = rows > kPanelRows ? panel_groups : 0;
    flip = (w.flip ^ static_cast<uint32_t>(w.bits == 8 ? kOffset<8> : 0)) * 0x01010101u;
  }
  // Of slice s, where the group's entries of the first panel start at `at`.
  int64_t entry(int64_t at, int s) const {
    return at + s / kPanelSlices * groups_stride + s % kPanelSlices * kLanes;
  }
};

// Where a walk along the columns of some panels gets the codes of a word of each of them.
struct DenseCodes {
  static constexpr bool kDense = true;
  const uint8_t* at;
  int64_t stride;  // bytes from a panel to the next

  DenseCodes(const Tile& tile) : at(tile.codes), stride(tile.codes_stride) {}
  // Word `word` from here on of a panel.
  void load(int panel, int word, Codes* slices) const {
    unroll<kPanelSlices>([&](auto s) {
      slices[s] = load_codes(at + panel * stride + word * kWordBytes + s * kLanes * 4);
    });
  }
  // Always inline, as prefetch is. kFast: words are read faster than a cache behind the first hands them on.
  template <bool kFast>
  ALWAYS_INLINE void prefetch_word(int panel, int word) const {
    const uint8_t* next = at + panel * stride + word * kWordBytes;
    kFast ? prefetch(next + kAhead) : prefetch_far(next + kFarAhead);
  }
  void skip(int64_t words) { at += words * kWordBytes; }
};

}  // namespace
}  // namespace pumice::PUMICE_ISA
