// matmul_int: y = x w^T for prepacked integer weights and integer activations.
//
// Lanes are rows of w; 4 codes of each lane meet one broadcast quad of activations, so there are no horizontal sums. A tile is
// up to kTileRows rows of x against kTilePanels panels: a quad is loaded once for all its panels, a code is unpacked once
// for all its rows. Bound by memory for small batches: a panel is read once per row tile, from cache after the first time.
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

constexpr int kPanelSlices = static_cast<int>(kPanelRows) / kLanes;  // vectors that hold one row of a panel
constexpr int kSlices = kPanelSlices * kTilePanels;
constexpr int kAhead = 4096;  // bytes of prefetch

inline F32 load_scales(const DenseInt& w, int64_t at) {
  return w.half_scales ? load_half(static_cast<const uint16_t*>(w.scales) + at)
                       : load_f32(static_cast<const float*>(w.scales) + at);
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

// Where slice s of a tile starts. A tile with one panel left reads that panel again in place of the next.
struct Tile {
  const DenseInt& w;
  int64_t groups;
  int64_t codes_stride;   // bytes from a panel to the next
  int64_t groups_stride;  // scales, or zeros, likewise

  explicit Tile(const DenseInt& view) : w(view), groups(groups_of(view)) {
    const bool whole = view.rows > kPanelRows;
    codes_stride = whole ? words_of(view) * kPanelRows * 4 : 0;
    groups_stride = whole ? groups * kPanelRows : 0;
  }
  const uint8_t* codes(int s) const {
    return w.codes + s / kPanelSlices * codes_stride + s % kPanelSlices * kLanes * 4;
  }
  int64_t group_at(int64_t group, int s) const {
    return s / kPanelSlices * groups_stride + group * kPanelRows + s % kPanelSlices * kLanes;
  }
};

// Low words kFrom .. kFrom + kCount - 1 of one unit of each row of the tile against kRows rows of x, whose quads of these
// words start at `quads`. Two chains of sums hide the latency of a dot product where there are registers for them.
template <int kBits, int kChain, int kFrom, int kCount, int kRows, int kChains, class D>
inline void add_words(const Tile& tile, int64_t at, uint32_t mask, const uint8_t* quads,
                      D (&sums)[kRows][kSlices][kChains]) {
  constexpr int kLow = unit_of(kBits).low, kHigh = unit_of(kBits).high;  // not a Unit: GCC 12 fails on one in a lambda
  constexpr int kHighWord = unit_of(kBits).low_words, kPerByte = 8 / kLow, kPanelWord = static_cast<int>(kPanelRows) * 4;
  Codes high[kSlices];
  if constexpr (kHigh != 0) {
    unroll<kSlices>([&](auto s) { high[s] = load_codes(tile.codes(s) + at + kHighWord * kPanelWord); });
  }
  unroll<kCount>([&](auto word) {
    Codes low[kSlices];
    unroll<kSlices>([&](auto s) {
      const uint8_t* codes = tile.codes(s) + at + (kFrom + word) * kPanelWord;
      if (s % kPanelSlices == 0) prefetch(codes + kAhead);
      low[s] = load_codes(codes);
      if constexpr (kBits == 8) low[s] = flip(low[s], mask);
    });
    unroll<kPerByte>([&](auto part) {
      constexpr int kStep = decltype(word){} * kPerByte + decltype(part){};
      constexpr int kSum = (kCount * kPerByte > 1 ? kStep : kChain) % kChains;
      Codes bytes[kSlices];
      unroll<kSlices>([&](auto s) {
        bytes[s] = bytes_of<kLow>(low[s], part);
        if constexpr (kHigh != 0) bytes[s] = with_high<kLow, kHigh>(bytes[s], high[s], kFrom * kPerByte + kStep);
      });
      unroll<kRows>([&](auto m) {
        const uint8_t* quad = quads + (kStep * D::kPlanes * kRows + m) * 4;
        const auto digits = D::load(quad, quad + kRows * 4);
        unroll<kSlices>([&](auto s) { sums[m][s][kSum].add(bytes[s], digits); });
      });
    });
  });
}

// float(t) * as of one segment: columns k .. stop, all in one block.
template <int kBits, bool kTwoDigits, int kRows>
inline void segment_products(const Tile& tile, const QuantizedRows& a, int64_t row, int64_t k, int64_t stop, bool half,
                             const int32_t* starts, const I32* zeros, F32 (&products)[kRows][kSlices]) {
  constexpr int kCols = unit_of(kBits).cols, kWords = unit_of(kBits).low_words, kSteps = kCols / 4;
  constexpr int kChains = kRows * kSlices <= kTwoChains<kTwoDigits> ? 2 : 1;
  using D = Dot<kBits, kTwoDigits>;
  D dots[kRows][kSlices][kChains];
  unroll<kRows>([&](auto m) {
    const I32 start = set_i32(starts[m]);
    unroll<kSlices>([&](auto s) {
      dots[m][s][0].start(zeros ? mul(zeros[s], start) : start);
      if constexpr (kChains == 2) dots[m][s][1].start(zero_i32());
    });
  });
  constexpr int64_t kQuads = kSteps * D::kPlanes * kRows * 4;           // bytes of the quads of a unit
  constexpr int64_t kUnitBytes = unit_of(kBits).words * kPanelRows * 4;
  const uint32_t mask = (tile.w.flip ^ static_cast<uint32_t>(kOffset<kBits>)) * 0x01010101u;
  const int64_t last = ceil_div(stop, kCols);
  int64_t unit = k / kCols;
  int64_t at = unit * kUnitBytes;
  const uint8_t* quads = a.quads + row * a.padded * D::kPlanes + unit * kQuads;
  const auto flush = [&] {
    unroll<kRows>([&](auto m) {
      unroll<kSlices>([&](auto s) { unroll<kChains>([&](auto chain) { dots[m][s][chain].flush(); }); });
    });
  };
  if (kCols > kMinGroup && half) {  // a group of 16 columns is half a unit
    if (k % kCols == 0) {
      add_words<kBits, 0, 0, kWords / 2>(tile, at, mask, quads, dots);
    } else {
      add_words<kBits, 0, kWords / 2, kWords - kWords / 2>(tile, at, mask, quads + kQuads / 2, dots);
    }
    flush();
    unit = last;
  }
  while (unit < last) {
    constexpr int64_t kStretch = D::kFlush / kSteps;
    const int64_t end = kStretch && unit + kStretch < last ? unit + kStretch : last;
    if constexpr (kChains == 2 && kSteps == 1) {
      for (; unit + 1 < end; unit += 2, at += 2 * kUnitBytes, quads += 2 * kQuads) {
        add_words<kBits, 0, 0, 1>(tile, at, mask, quads, dots);
        add_words<kBits, 1, 0, 1>(tile, at + kUnitBytes, mask, quads + kQuads, dots);
      }
    }
    for (; unit < end; ++unit, at += kUnitBytes, quads += kQuads) {
      add_words<kBits, 0, 0, kWords>(tile, at, mask, quads, dots);
    }
    flush();
  }
  const float* steps = a.steps + row * a.blocks + k / kBlock * kRows;
  unroll<kRows>([&](auto m) {
    const F32 scale = set_f32(steps[m]);
    unroll<kSlices>([&](auto s) {
      if constexpr (kChains == 2) dots[m][s][0].merge(dots[m][s][1]);
      products[m][s] = mul(to_f32(dots[m][s][0].total()), scale);
    });
  });
}

// Flat: a lambda that is not inlined takes the address of the sums, which then live in memory.
template <int kBits, bool kTwoDigits, int kRows>
__attribute__((flatten)) void tile_rows(const DenseInt& w, const QuantizedRows& a, int64_t row, int64_t segment, float* y,
                                        int64_t y_stride) {
  const Tile tile(w);
  F32 result[kRows][kSlices];
  unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { result[m][s] = zero_f32(); }); });
  const int32_t* starts = a.starts + row * a.segments;
  const bool half = segment == kMinGroup;
  for (int64_t group = 0; group < tile.groups; ++group) {
    const int64_t begin = group * w.group, end = begin + w.group < w.cols ? begin + w.group : w.cols;
    I32 zeros[kSlices];
    if (w.zeros) {
      unroll<kSlices>([&](auto s) {
        zeros[s] = load_u8(w.zeros + tile.group_at(group, s));
        if constexpr (kOffset<kBits> != 0) zeros[s] = sub(zeros[s], set_i32(kOffset<kBits>));
      });
    }
    const I32* own = w.zeros ? zeros : nullptr;
    F32 sum[kRows][kSlices];  // of the group's segments; the first product is the sum so far
    const int64_t first = begin + segment < end ? begin + segment : end;
    segment_products<kBits, kTwoDigits>(tile, a, row, begin, first, half, starts, own, sum);
    starts += kRows;
    for (int64_t k = begin + segment; k < end; k += segment, starts += kRows) {
      F32 products[kRows][kSlices];
      const int64_t stop = k + segment < end ? k + segment : end;
      segment_products<kBits, kTwoDigits>(tile, a, row, k, stop, half, starts, own, products);
      unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { sum[m][s] = add(sum[m][s], products[m][s]); }); });
    }
    unroll<kSlices>([&](auto s) {
      const F32 scale = load_scales(w, tile.group_at(group, s));
      unroll<kRows>([&](auto m) { result[m][s] = add(result[m][s], mul(sum[m][s], scale)); });
    });
  }
  for (int panel = 0; panel * kPanelRows < w.rows; ++panel) {
    unroll<kRows>([&](auto m) {
      store_panel(result[m] + panel * kPanelSlices, w.rows - panel * kPanelRows,
                  y + (row + m) * y_stride + panel * kPanelRows);
    });
  }
}

// The instance for `count` rows of x, 1 <= count <= kRows.
template <int kBits, bool kTwoDigits, int kRows>
void pick_rows(int64_t count, const DenseInt& w, const QuantizedRows& a, int64_t row, int64_t segment, float* y,
               int64_t y_stride) {
  if constexpr (kRows > 1) {
    if (count < kRows) return pick_rows<kBits, kTwoDigits, kRows - 1>(count, w, a, row, segment, y, y_stride);
  }
  tile_rows<kBits, kTwoDigits, kRows>(w, a, row, segment, y, y_stride);
}

template <int kBits, bool kTwoDigits>
void tiles(const DenseInt& w, const QuantizedRows& a, int64_t batch, int64_t segment, float* y, int64_t y_stride) {
  for (int64_t row = 0; row < batch; row += a.height) {
    const int64_t count = batch - row < a.height ? batch - row : a.height;
    pick_rows<kBits, kTwoDigits, kTileRows<kBits, kTwoDigits>>(count, w, a, row, segment, y, y_stride);
  }
}

// The fewest tiles, of equal height but for the last: 16 rows are 8 + 8, not 12 + 4.
int64_t tile_height(int64_t batch, int bits, bool two_digits) {
  const int64_t most = with_bits(bits, [&](auto constant) -> int64_t {
    constexpr int kBits = decltype(constant){};
    return two_digits ? kTileRows<kBits, true> : kTileRows<kBits, false>;
  });
  return batch == 0 ? 1 : ceil_div(batch, ceil_div(batch, most));
}

// The panels of w from row `first` on.
inline DenseInt from_row(const DenseInt& w, int64_t first) {
  const int64_t panel = first / kPanelRows, groups = groups_of(w);
  DenseInt rest = w;
  rest.rows -= first;
  rest.codes += panel * words_of(w) * kPanelRows * 4;
  rest.scales = static_cast<const uint8_t*>(w.scales) + panel * groups * kPanelRows * (w.half_scales ? 2 : 4);
  if (w.zeros) rest.zeros += panel * groups * kPanelRows;
  return rest;
}

void matmul_int(const DenseInt& w, QuantizedRows a, int64_t batch, int64_t segment, bool two_digits, float* y,
                int64_t y_stride) {
  for (int64_t first = 0; first < w.rows; first += kTilePanels * kPanelRows) {
    DenseInt tile = from_row(w, first);
    if (tile.rows > kTilePanels * kPanelRows) tile.rows = kTilePanels * kPanelRows;
    with_bits(w.bits, [&](auto constant) {
      constexpr int kBits = decltype(constant){};
      (two_digits ? tiles<kBits, true> : tiles<kBits, false>)(tile, a, batch, segment, y + first, y_stride);
    });
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
