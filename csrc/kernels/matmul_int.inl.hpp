// matmul_int: y = x w^T for prepacked integer weights and integer activations; matmul_int_bitmask: the same for those whose
// codes a bitmask places, which are expanded in registers.
//
// Lanes are rows of w; 4 codes of each lane meet one broadcast quad of activations, so there are no horizontal sums. A tile is
// up to kTileRows rows of x against kPanels panels: a quad is loaded once for all its panels, a code is unpacked once
// for all its rows. Bound by memory for small batches: a panel is read once per row tile, from cache after the first time.
//
//   y[m][n] = sum over groups of scale * (sum over the group's segments of float(t) * as),
//   t = sum over the segment of (code - zero) * a, exact in int32
//
// and after each group's product with its scale, where there are minima, + minimum * (sum of float(sum of a) * as),
// in ascending order, every float operation rounded on its own: the promise of docs/formats.md, "Products".
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernels/panels.inl.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

// Panels that are multiplied together. Few rows of x take one: from memory two streams of codes are slower than one, by 5 % at
// 4 rows and 15 % at 1, though from cache they would be faster.
template <int kRows>
constexpr int kPanels = kRows <= 4 ? 1 : kTilePanels;
constexpr int kFewSums = 8;   // vectors of sums; with no more, products are bound by loads and not by arithmetic

// Codes of kBits bits at the places of a bitmask. Each word is loaded once, one after the other.
template <int kBits>
struct MaskedCodes {
  static constexpr bool kDense = false;
  static constexpr int kMost = 2;  // panels
  const uint64_t* masks;
  int64_t stride;  // masks from a panel to the next
  const uint8_t* data[kMost];

  MaskedCodes(const MaskedInt& w, int64_t first, const Tile& tile) : masks(w.masks), stride(0) {
    const int64_t panel = first / kPanelRows, steps = ceil_div(w.dense.cols, 4);
    const bool two = tile.rows > kPanelRows;
    masks += panel * steps;
    if (two) stride = steps;
    data[0] = w.data + w.offsets[panel];
    data[1] = w.data + w.offsets[panel + two];
  }
  void load(int panel, int word, Codes* slices) {
    const uint64_t mask = masks[panel * stride + word];
    expand_codes<kBits>(data[panel], mask, slices);
    const int count = __builtin_popcountll(mask);
    data[panel] += kBits == 8 ? count : (count + 1) / 2;
  }
  template <bool>
  ALWAYS_INLINE void prefetch_word(int panel, int) const { prefetch(data[panel] + kAhead); }
  void skip(int64_t words) { masks += words; }
};

// Where a walk along the columns stands: quads, starts and steps of the rows of x.
struct Place {
  const uint8_t* quads;
  const int32_t* starts;
  const float* steps;
};

// The sums of one segment: for each row of x and slice, chains of dot products enough to hide the latency of one.
template <int kWidth, bool kTwoDigits, int kTile>
struct Sums {
  static constexpr int kBits = kWidth, kRows = kTile;
  using D = Dot<kBits, kTwoDigits>;
  static constexpr int kSlices = kPanelSlices * kPanels<kRows>;
  static constexpr int kVectors = kRows * kSlices * D::kRegisters;
  static constexpr int kChains = kVectors <= 2 ? 4 : kVectors <= 4 ? 2 : 1;
  static constexpr Unit kUnit = unit_of(kBits);
  static constexpr int kLow = kUnit.low, kHigh = kUnit.high, kPerByte = 8 / kLow, kSteps = kUnit.cols / 4;
  static constexpr int kUnitQuads = kSteps * D::kPlanes * kRows * 4;  // bytes
  static constexpr int kHighWord = kUnit.low_words;

  D dots[kRows][kSlices][kChains];
  typename D::Wide wides[kRows][kSlices][kChains];

  void start(const int32_t* starts, const I32* zeros) {
    unroll<kRows>([&](auto m) {
      const I32 start = set_i32(starts[m]);
      unroll<kSlices>([&](auto s) {
        dots[m][s][0].start(zeros ? mul(zeros[s], start) : start, wides[m][s][0]);
        unroll<kChains - 1>([&](auto chain) { dots[m][s][chain + 1].start(zero_i32(), wides[m][s][chain + 1]); });
      });
    });
  }

  // Low words kFrom .. kFrom + kCount - 1 of one unit, the one `first` words from here on, whose quads start at `quads`. Steps
  // take turns at the chains.
  template <int kFrom, int kCount, int kTurn, class Source>
  void add_words(Source& codes, int first, uint32_t mask, const uint8_t* quads) {
    Codes high[kSlices];
    if constexpr (kHigh != 0) {
      unroll<kPanels<kRows>>([&](auto panel) { codes.load(panel, first + kHighWord, high + panel * kPanelSlices); });
    }
    unroll<kCount>([&](auto word) ALWAYS_INLINE {
      Codes low[kSlices];
      unroll<kPanels<kRows>>([&](auto panel) ALWAYS_INLINE {
        codes.template prefetch_word<kBits == 8 && kRows == 1>(panel, first + kFrom + word);
        codes.load(panel, first + kFrom + word, low + panel * kPanelSlices);
      });
      unroll<kSlices>([&](auto s) {
        if (Source::kDense && kVectors * kChains <= kFewSums) low[s] = once(low[s]);
        if constexpr (kBits == 8 && (Source::kDense || kOffset<8>)) low[s] = flip(low[s], mask);
      });
      unroll<kPerByte>([&](auto part) ALWAYS_INLINE {
        constexpr int kStep = decltype(word){} * kPerByte + decltype(part){};
        Codes bytes[kSlices];
        unroll<kSlices>([&](auto s) {
          bytes[s] = bytes_of<kLow>(low[s], part);
          if constexpr (kHigh != 0) bytes[s] = with_high<kLow, kHigh>(bytes[s], high[s], kFrom * kPerByte + kStep);
        });
        unroll<kRows>([&](auto m) ALWAYS_INLINE {
          const uint8_t* quad = quads + (kStep * D::kPlanes * kRows + m) * 4;
          const auto digits = D::load(quad, quad + kRows * 4);
          unroll<kSlices>([&](auto s) {
            D& dot = dots[m][s][(kTurn + kStep) % kChains];
            if constexpr (kWideRows > 0 && kRows > 2) {
              dot.add_pinned(bytes[s], digits);
            } else {
              dot.add(bytes[s], digits);
            }
          });
        });
      });
    });
  }

  // `units` whole units; kTurns: as many as let each chain have its turn.
  template <int kTurns, class Source>
  void add_units(int64_t units, Source& codes, uint32_t mask, const uint8_t* quads) {
    constexpr int64_t kStretch = D::kFlush ? D::kFlush / kSteps : kBlock;
    static_assert(kStretch % kTurns == 0);
    while (units > 0) {
      int64_t now = units < kStretch ? units : kStretch;
      units -= now;
      for (; now > 0; now -= kTurns, quads += kTurns * kUnitQuads) {
        unroll<kTurns>([&](auto u) ALWAYS_INLINE {
          add_words<0, kHighWord, u * kSteps>(codes, u * kUnit.words, mask, quads + u * kUnitQuads);
        });
        codes.skip(kTurns * kUnit.words);
      }
      flush();
    }
  }

  void flush() {
    unroll<kRows>([&](auto m) {
      unroll<kSlices>([&](auto s) { unroll<kChains>([&](auto c) { dots[m][s][c].flush(wides[m][s][c]); }); });
    });
  }

  // use(row of x, slice, float(t) * as)
  template <class Use>
  void finish(const float* steps, const Use& use) {
    unroll<kRows>([&](auto m) {
      const F32 scale = set_f32(steps[m]);
      unroll<kSlices>([&](auto s) {
        I32 total = dots[m][s][0].total(wides[m][s][0]);
        unroll<kChains - 1>([&](auto c) { total = add(total, dots[m][s][c + 1].total(wides[m][s][c + 1])); });
        use(m, s, mul(to_f32(total), scale));
      });
    });
  }
};

// The same of codes that were widened for many row tiles, so that the loop only loads, multiplies and adds. A unit is 16 columns;
// each step has a word for each plane of its activations.
template <int kPlanes, int kRows>
struct WideSums : Sums<kPlanes == 1 ? 4 : 8, kPlanes == 2, kRows> {
  using D = typename WideSums::D;
  static constexpr int kSteps = 4, kWords = kSteps * kPlanes, kUnitQuads = kWords * kRows * 4;
  static constexpr Unit kUnit{16, kWords, kWords, 8, 0};

  template <int kTurns, class Source>
  void add_units(int64_t units, Source& codes, uint32_t, const uint8_t* quads) {
    constexpr int64_t kStretch = D::kFlush ? D::kFlush / kSteps : kBlock;
    while (units > 0) {
      int64_t now = units < kStretch ? units : kStretch;
      units -= now;
      for (; now > 0; --now, quads += kUnitQuads) {
        unroll<kWords>([&](auto word) ALWAYS_INLINE {
          Codes wide[kPanelSlices];
          codes.load(0, word, wide);
          unroll<kRows>([&](auto m) ALWAYS_INLINE {
            const auto quad = D::quad(quads + (word * kRows + m) * 4);
            unroll<kPanelSlices>([&](auto s) { this->dots[m][s][0].add_wide(wide[s], quad); });
          });
        });
        codes.skip(kWords);
      }
      this->flush();
    }
  }
};

// Columns k .. stop, some of one block; quads are those of column 0.
template <class S, class Source>
inline void add_part(S& sums, const Tile& tile, Source& codes, const uint8_t* quads, int64_t k, int64_t stop) {
  constexpr int kCols = S::kUnit.cols, kWords = S::kUnit.low_words;
  const int64_t unit = k / kCols;
  quads += unit * S::kUnitQuads;
  if (kCols > kMinGroup && tile.group == kMinGroup) {  // a group of 16 columns is half a unit
    if (k % kCols == 0) {
      sums.template add_words<0, kWords / 2, 0>(codes, 0, tile.flip, quads);
    } else {
      sums.template add_words<kWords / 2, kWords - kWords / 2, 0>(codes, 0, tile.flip, quads + S::kUnitQuads / 2);
      codes.skip(S::kUnit.words);
    }
    sums.flush();
  } else {
    sums.template add_units<1>(ceil_div(stop, kCols) - unit, codes, tile.flip, quads);
  }
}

// Flat: a lambda that is not inlined takes the address of the sums, which then live in memory.
template <class S, class Source>
__attribute__((flatten)) void tile_rows(const Tile& tile, Source codes, const QuantizedTiles& a, int64_t row, float* y,
                                        int64_t y_stride) {
  const int64_t segment = a.segment;
  constexpr int kRows = S::kRows, kSlices = S::kSlices, kUnits = static_cast<int>(kBlock) / S::kUnit.cols;  // of a block
  constexpr int kTurns = S::kChains > S::kSteps ? S::kChains / S::kSteps : 1;
  const Place base{a.quads + row * a.padded * S::D::kPlanes, a.starts + row * a.segments, a.steps + row * a.blocks};
  Place at = base;
  const float* sums = tile.minima ? a.sums + row * a.segments : nullptr;
  F32 result[kRows][kSlices];
  unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { result[m][s] = zero_f32(); }); });
  int64_t k = 0;
  for (int64_t at_group = 0; k < tile.cols; at_group += kPanelRows) {
    const int64_t end = tile.cols - k > tile.group ? k + tile.group : tile.cols;
    I32 own[kSlices];
    if (tile.zeros) {
      unroll<kSlices>([&](auto s) {
        own[s] = sub(load_u8(tile.zeros + tile.entry(at_group, s)), set_i32(kOffset<S::kBits>));
      });
    }
    const I32* zeros = tile.zeros ? own : nullptr;
    const auto each_segment = [&](const auto& use) {
      for (; end - k >= kBlock; k += kBlock) {
        S sums;
        sums.start(at.starts, zeros);
        sums.template add_units<kTurns>(kUnits, codes, tile.flip, at.quads);
        sums.finish(at.steps, use);
        at = {at.quads + kUnits * S::kUnitQuads, at.starts + kRows, at.steps + kRows};
      }
      for (; k < end; k += segment, at.starts += kRows) {
        const int64_t stop = end - k > segment ? k + segment : end;
        S sums;
        sums.start(at.starts, zeros);
        add_part(sums, tile, codes, base.quads, k, stop);
        sums.finish(base.steps + k / kBlock * kRows, use);
      }
      k = end;
    };
    F32 scales[kSlices];
    unroll<kSlices>([&](auto s) { scales[s] = load_scales(tile.scales, tile.half_scales, tile.entry(at_group, s)); });
    if (end - k <= segment) {
      each_segment([&](auto m, auto s, F32 product) { result[m][s] = add(result[m][s], mul(product, scales[s])); });
    } else {  // sums that begin at +0 give the bits of those that begin at the first product, as results begin at +0
      F32 sum[kRows][kSlices];
      unroll<kRows>([&](auto m) { unroll<kSlices>([&](auto s) { sum[m][s] = zero_f32(); }); });
      each_segment([&](auto m, auto s, F32 product) { sum[m][s] = add(sum[m][s], product); });
      unroll<kRows>([&](auto m) {
        unroll<kSlices>([&](auto s) { result[m][s] = add(result[m][s], mul(sum[m][s], scales[s])); });
      });
    }
    if (!tile.minima) continue;
    float totals[kRows] = {};  // of the activations that the group met
    for (const float* end_of_sums = a.sums + (at.starts - a.starts); sums < end_of_sums; sums += kRows) {
      unroll<kRows>([&](auto m) { totals[m] += sums[m]; });
    }
    unroll<kSlices>([&](auto s) {
      const F32 minimum = load_scales(tile.minima, tile.half_scales, tile.entry(at_group, s));
      unroll<kRows>([&](auto m) { result[m][s] = add(result[m][s], mul(minimum, set_f32(totals[m]))); });
    });
  }
  for (int panel = 0; panel * kPanelRows < tile.rows; ++panel) {
    unroll<kRows>([&](auto m) {
      store_panel(result[m] + panel * kPanelSlices, tile.rows - panel * kPanelRows,
                  y + (row + m) * y_stride + panel * kPanelRows);
    });
  }
}

// tile_rows for some number of rows of x, how many panels it takes, and whether their codes are widened.
template <class Source>
struct TileRows {
  void (*run)(const Tile& tile, Source codes, const QuantizedTiles& a, int64_t row, float* y, int64_t y_stride);
  int panels;
  bool wide;
};

// 1 <= count <= kRows
template <int kBits, bool kTwoDigits, class Source, int kRows = kTileRows<kBits, kTwoDigits>>
TileRows<Source> tile_rows_of(int64_t count) {
  if constexpr (kRows > 1) {
    if (count < kRows) return tile_rows_of<kBits, kTwoDigits, Source, kRows - 1>(count);
  }
  return {tile_rows<Sums<kBits, kTwoDigits, kRows>, Source>, kPanels<kRows>, false};
}

// Bytes of a panel's widened codes, whole units of 32 columns: the largest of all widths.
template <int kBits, bool kTwoDigits>
int64_t wide_bytes(int64_t cols) {
  using W = WideSums<Dot<kBits, kTwoDigits>::kPlanes, 1>;
  return ceil_div(cols, 32) * (32 / W::kUnit.cols) * W::kWords * kWordBytes;
}

// The codes of one panel as WideSums reads them.
template <int kBits, bool kTwoDigits>
void widen(const Tile& tile, uint8_t* out) {
  using S = Sums<kBits, kTwoDigits, 1>;
  uint8_t* const end = out + wide_bytes<kBits, kTwoDigits>(tile.cols);
  DenseCodes codes(tile);
  for (int64_t k = 0; k < tile.cols; k += S::kUnit.cols, codes.skip(S::kUnit.words)) {
    Codes high[kPanelSlices];
    if constexpr (S::kHigh != 0) codes.load(0, S::kHighWord, high);
    codes.template prefetch_word<true>(0, 0);
    for (int step = 0; step < S::kSteps; ++step) {
      Codes low[kPanelSlices];
      codes.load(0, step / S::kPerByte, low);
      for (int s = 0; s < kPanelSlices; ++s) {
        if constexpr (kBits == 8) low[s] = flip(low[s], tile.flip);
        Codes bytes = bytes_of<S::kLow>(low[s], step % S::kPerByte);
        if constexpr (S::kHigh != 0) bytes = with_high<S::kLow, S::kHigh>(bytes, high[s], step);
        for (int plane = 0; plane < S::D::kPlanes; ++plane) {
          store_codes(out + plane * kWordBytes + s * kLanes * 4, S::D::widened(bytes, plane));
        }
      }
      out += S::D::kPlanes * kWordBytes;
    }
  }
  std::memset(out, 0, static_cast<size_t>(end - out));
}

// Four row tiles repay widening, also where memory is slow. From there on all tiles have kWideRows rows, or one less, but for the last.
constexpr bool is_wide(int64_t batch) { return kWideRows > 0 && batch >= 4 * kWideRows; }

// The fewest tiles, of equal height but for the last: 16 rows are 8 + 8, not 12 + 4.
void choose_tiles(QuantizedTiles& a, int bits, bool two_digits) {
  const int64_t most = with_bits(bits, [&](auto constant) -> int64_t {
    constexpr int kBits = decltype(constant){};
    return is_wide(a.batch) ? kWideRows : two_digits ? kTileRows<kBits, true> : kTileRows<kBits, false>;
  });
  a.matrix = false;
  a.height = a.batch == 0 ? 1 : ceil_div(a.batch, ceil_div(a.batch, most));
}

template <int kBits, bool kTwoDigits>
TileRows<DenseCodes> dense_rows_of(int64_t batch, int64_t count) {
  if constexpr (kWideRows > 0) {
    constexpr int kPlanes = Dot<kBits, kTwoDigits>::kPlanes;
    if (is_wide(batch) && count == kWideRows) return {tile_rows<WideSums<kPlanes, kWideRows>, DenseCodes>, 1, true};
    if (is_wide(batch) && count == kWideRows - 1) {
      return {tile_rows<WideSums<kPlanes, kWideRows - 1>, DenseCodes>, 1, true};
    }
  }
  return tile_rows_of<kBits, kTwoDigits, DenseCodes>(count);
}

template <int kBits, bool kTwoDigits>
bool matmul_int_of(const DenseInt& w, const QuantizedTiles& a, float* y, int64_t y_stride) {
  const int64_t whole = a.batch / a.height * a.height, rest = a.batch - whole;
  const TileRows<DenseCodes> full = dense_rows_of<kBits, kTwoDigits>(a.batch, a.height);
  const TileRows<DenseCodes> last = dense_rows_of<kBits, kTwoDigits>(a.batch, rest ? rest : a.height);
  uint8_t* wide = nullptr;
  if constexpr (kWideRows > 0) {
    if (full.wide) wide = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(wide_bytes<kBits, kTwoDigits>(w.cols))));
    if (full.wide && !wide) return false;
  }
  for (int64_t first = 0; first < w.rows; first += full.panels * kPanelRows) {
    const Tile tile(w, first, full.panels);
    Tile widened = tile;
    if constexpr (kWideRows > 0) {
      if (wide) widen<kBits, kTwoDigits>(tile, wide), widened.codes = wide;
    }
    for (int64_t row = 0; row < whole; row += a.height) full.run(widened, widened, a, row, y + first, y_stride);
    if (rest == 0) continue;
    for (int64_t n = first; n < first + tile.rows; n += last.panels * kPanelRows) {
      const Tile some = last.wide ? widened : Tile(w, n, last.panels);
      last.run(some, some, a, whole, y + n, y_stride);
    }
  }
  std::free(wide);
  return true;
}

bool matmul_int(const DenseInt& w, const QuantizedTiles& a, bool two_digits, float* y, int64_t y_stride) {
  return with_bits(w.bits, [&](auto constant) {
    constexpr int kBits = decltype(constant){};
    return (two_digits ? matmul_int_of<kBits, true> : matmul_int_of<kBits, false>)(w, a, y, y_stride);
  });
}

template <int kCodeBits>
void matmul_masked(const MaskedInt& w, const QuantizedTiles& a, bool two_digits, float* y, int64_t y_stride) {
  using Source = MaskedCodes<kCodeBits>;
  const TileRows<Source> all = two_digits ? tile_rows_of<8, true, Source>(a.batch) : tile_rows_of<8, false, Source>(a.batch);
  for (int64_t first = 0; first < w.dense.rows; first += all.panels * kPanelRows) {
    const Tile tile(w.dense, first, all.panels);
    all.run(tile, Source(w, first, tile), a, 0, y + first, y_stride);
  }
}

void matmul_int_bitmask(const MaskedInt& w, const QuantizedTiles& a, bool two_digits, float* y, int64_t y_stride) {
  (w.bits == 8 ? matmul_masked<8> : matmul_masked<4>)(w, a, two_digits, y, y_stride);
}

// Panels first .. first + count - 1 as dense codes of 8 bits.
void expand_panels(const MaskedInt& w, int64_t first, int64_t count, uint8_t* out) {
  const int64_t steps = ceil_div(w.dense.cols, 4);
  for (int64_t panel = first; panel < first + count; ++panel) {
    const uint8_t* data = w.data + w.offsets[panel];
    for (int64_t step = 0; step < steps; ++step, out += kWordBytes) {
      const uint64_t mask = w.masks[panel * steps + step];
      Codes slices[kPanelSlices];
      prefetch_far(data + kFarAhead);
      w.bits == 8 ? expand_codes<8>(data, mask, slices) : expand_codes<4>(data, mask, slices);
      for (int s = 0; s < kPanelSlices; ++s) store_codes(out + s * kLanes * 4, slices[s]);
      const int values = __builtin_popcountll(mask);
      data += w.bits == 8 ? values : (values + 1) / 2;
    }
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
