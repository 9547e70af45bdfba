// matmul_int for large batches by a matrix unit, whose tiles hold 16 x 16 sums: rows of x against the rows of a panel of w.
//
// A word of a panel, 4 codes of each of 16 rows, is a row of a tile register as it rests if codes have 8 bits; others are
// expanded into scratch first, once for all rows of x. Two panels meet two tiles of x, or the two digits of one: 4 registers
// of sums, 2 of digits, 2 of codes. The integers of a segment leave the registers through memory, and the floats that they
// become are summed there as well, since 64 vectors of sums are more than there are registers. That takes about as long as the
// matrix unit takes for the next segment, so the two overlap.
//
// The arithmetic is that of matmul_int.inl.hpp, to the bit.
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernels/matrix_tiles.inl.hpp"
#include "kernels/panels.inl.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kPair = 2;                                       // of panels, and of tiles or digits of x
constexpr int64_t kPairRows = kPair * kPanelRows;              // of w
constexpr int kSumTiles = 0, kDigitTiles = 4, kCodeTiles = 6;  // the first register of each kind

// Of a segment, as it comes out of the registers; and floats of y.
using IntSums = int32_t[kPair][kMatrixRows][kPairRows];
using FloatSums = float[kPair][kMatrixRows][kPairRows];

inline int64_t depth_of(const QuantizedTiles& a) { return a.segment < kMatrixRowBytes ? a.segment : kMatrixRowBytes; }

// The shapes for one product: a tile of x has `height` rows, and an instruction takes `depth` columns.
inline TileShapes tile_shapes(int64_t height, int64_t depth) {
  TileShapes shapes;
  for (int i = 0; i < kTileRegisters; ++i) {
    shapes.rows[i] = static_cast<uint8_t>(i < kCodeTiles ? height : depth / 4);
    shapes.row_bytes[i] = static_cast<uint16_t>(i >= kDigitTiles && i < kCodeTiles ? depth : kWordBytes);
  }
  return shapes;
}

// Bytes of a panel's codes with 8 bits each, whole blocks.
inline int64_t expanded_bytes(int64_t cols) { return ceil_div(cols, kBlock) * kBlock * kPanelRows; }

// The codes of one panel with 8 bits each, then zeros.
template <int kBits>
void expand_panel(const uint8_t* from, int64_t cols, uint32_t mask, uint8_t* out) {
  constexpr Unit kUnit = unit_of(kBits);
  constexpr int kPerByte = 8 / kUnit.low;
  uint8_t* const end = out + expanded_bytes(cols);
  for (int64_t k = 0; k < cols; k += kUnit.cols, from += kUnit.words * kWordBytes) {
    Codes high{};
    if constexpr (kUnit.high != 0) high = load_codes(from + kUnit.low_words * kWordBytes);
    unroll<kUnit.low_words>([&](auto word) ALWAYS_INLINE {
      prefetch(from + word * kWordBytes + kAhead);
      Codes low = load_codes(from + word * kWordBytes);
      if (kBits == 8) low = flip(low, mask);
      unroll<kPerByte>([&](auto part) ALWAYS_INLINE {
        Codes bytes = bytes_of<kUnit.low>(low, part);
        if constexpr (kUnit.high != 0) bytes = with_high<kUnit.low, kUnit.high>(bytes, high, word * kPerByte + part);
        store_codes(out, bytes);
        out += kWordBytes;
      });
    });
  }
  std::memset(out, 0, static_cast<size_t>(end - out));
}

// What rows of x meet of a group: entries of two panels.
struct Entries {
  F32 scales[kPair], minima[kPair];
  I32 zeros[kPair];

  Entries(const Tile& tile, int64_t group) {
    unroll<kPair>([&](auto p) {
      const int64_t at = tile.entry(group * kPanelRows, p);
      scales[p] = load_scales(tile.scales, tile.half_scales, at);
      minima[p] = tile.minima ? load_scales(tile.minima, tile.half_scales, at) : zero_f32();
      zeros[p] = tile.zeros ? load_u8(tile.zeros + at) : zero_i32();
    });
  }
};

// Some tiles of x, or the digits of one, against the panels of a Tile.
template <int kPlanes, int kTiles>
struct MatrixProduct {
  static constexpr int kDigits = kPlanes * kTiles;  // registers of them
  const Tile& tile;
  const QuantizedTiles& a;
  int64_t row, depth, plane, counts[kTiles];  // plane: bytes from a digit of a tile to the next; counts: rows of each tile
  const uint8_t* digits;

  MatrixProduct(const Tile& panels, const QuantizedTiles& tiles, int64_t first)
      : tile(panels), a(tiles), row(first), depth(depth_of(a)), plane(a.height * kBlock), digits(a.quads + row * a.padded * kPlanes) {
    for (int t = 0; t < kTiles; ++t) {
      const int64_t left = a.batch - row - t * a.height;
      counts[t] = left < a.height ? left : a.height;
    }
  }

  // Columns k .. k + segment - 1 into the registers of sums.
  ALWAYS_INLINE void multiply(int64_t k) const {
    unroll<kDigits * kPair>([&](auto i) ALWAYS_INLINE { zero_tile<kSumTiles + i>(); });
    const uint8_t* x = digits + k / kBlock * plane * kPlanes + k % kBlock;
    const uint8_t* w = tile.codes + k * kPanelRows;
    const int64_t next = kPlanes == 2 ? plane : a.height * a.padded, end = tile.cols - k < a.segment ? tile.cols - k : a.segment;
    for (int64_t at = 0; at < end; at += depth, x += depth, w += depth * kPanelRows) {
      unroll<kDigits>([&](auto d) ALWAYS_INLINE { load_tile<kDigitTiles + d>(x + d * next, kBlock); });
      unroll<kPair>([&](auto p) ALWAYS_INLINE { load_tile<kCodeTiles + p>(w + p * tile.codes_stride, kWordBytes); });
      unroll<kDigits * kPair>([&](auto i) ALWAYS_INLINE {
        dot_tiles<kSumTiles + i, kDigitTiles + i / kPair, kCodeTiles + i % kPair>();
      });
    }
  }
  ALWAYS_INLINE void store(IntSums& sums) const {
    unroll<kDigits * kPair>([&](auto i) ALWAYS_INLINE {
      store_tile<kSumTiles + i>(sums[i / kPair][0] + i % kPair * kPanelRows, sizeof sums[0][0]);
    });
  }

  // The digits and codes of the segment at column k, into the nearest cache while the floats of another are summed: what a tile
  // register waits for, nobody else can do.
  struct Ahead {
    const uint8_t *x, *w;
    int64_t next, stride;
    ALWAYS_INLINE void fetch(int t, int64_t m) const {
      prefetch(x + t * next + m * kBlock);
      prefetch(x + t * next + m * kBlock + 64);
      if (kPlanes == 2) {
        prefetch(x + next + m * kBlock);
        prefetch(x + next + m * kBlock + 64);
      }
      const uint8_t* words = w + t * stride + 2 * m * kWordBytes;
      prefetch(words);
      prefetch(words + kWordBytes);
      if (kTiles == 1) {
        prefetch(words + stride);
        prefetch(words + stride + kWordBytes);
      }
    }
  };
  Ahead ahead(int64_t k) const {
    return {digits + k / kBlock * plane * kPlanes + k % kBlock, tile.codes + k * kPanelRows,
            kPlanes == 2 ? plane : a.height * a.padded, tile.codes_stride};
  }

  // to += float(t) * as of the segment that begins at column k, times the scale if the segment is all of its group.
  template <bool kOwn, bool kWhole, bool kMinimum>
  ALWAYS_INLINE void add_segment(int64_t k, const Entries& group, const IntSums& sums, FloatSums& to, const Ahead& ahead) const {
    const int64_t segment = k / a.segment, block = k / kBlock;
    for (int t = 0; t < kTiles; ++t) {
      const int64_t first = row + t * a.height, at = first * a.segments + segment * counts[t];
      const float* steps = a.steps + first * a.blocks + block * counts[t];
      for (int64_t m = 0; m < counts[t]; ++m) {
        ahead.fetch(t, m);
        const I32 start = set_i32(a.starts[at + m]);
        const F32 step = set_f32(steps[m]);
        unroll<kPair>([&](auto p) ALWAYS_INLINE {
          I32 total = load_i32(&sums[kPlanes == 2 ? 0 : t][m][p * kLanes]);
          if (kPlanes == 2) total = add(shift_left<7>(total), load_i32(&sums[1][m][p * kLanes]));
          total = add(total, kOwn ? mul(group.zeros[p], start) : start);
          F32 product = mul(to_f32(total), step);
          if (kWhole) product = mul(product, group.scales[p]);
          F32 sum = add(load_f32(&to[t][m][p * kLanes]), product);
          if (kMinimum) sum = add(sum, mul(group.minima[p], set_f32(a.sums[at + m])));
          store_f32(&to[t][m][p * kLanes], sum);
        });
      }
    }
  }

  // result += sums * scale of a group of several segments, the first at column k, and its minima; the sums begin anew.
  void add_group(int64_t k, const Entries& group, FloatSums& sums, FloatSums& result) const {
    const int64_t end = tile.cols - k > tile.group ? k + tile.group : tile.cols;
    for (int t = 0; t < kTiles; ++t) {
      for (int64_t m = 0; m < counts[t]; ++m) {
        float total = 0.0f;  // of the activations that the group met
        const float* each = a.sums ? a.sums + (row + t * a.height) * a.segments + m : nullptr;
        for (int64_t at = k; each && at < end; at += a.segment) total += each[at / a.segment * counts[t]];
        unroll<kPair>([&](auto p) ALWAYS_INLINE {
          float* to = &result[t][m][p * kLanes];
          F32 sum = add(load_f32(to), mul(load_f32(&sums[t][m][p * kLanes]), group.scales[p]));
          if (each) sum = add(sum, mul(group.minima[p], set_f32(total)));
          store_f32(to, sum);
          store_f32(&sums[t][m][p * kLanes], zero_f32());
        });
      }
    }
  }

  // Segments of several or of all groups; kWhole: of one each.
  template <bool kOwn, bool kWhole, bool kMinimum>
  void run(float* y, int64_t y_stride) const {
    alignas(64) IntSums ints[2];
    alignas(64) FloatSums sums = {}, result = {};
    const int64_t group_cols = tile.group < tile.cols ? tile.group : tile.cols;
    const auto finish = [&](int64_t k) ALWAYS_INLINE {  // the segment at column k, which is stored
      const Entries group(tile, k / group_cols);
      add_segment<kOwn, kWhole, kMinimum>(k, group, ints[k / a.segment % 2], kWhole ? result : sums, ahead(k + 2 * a.segment));
      const int64_t next = k + a.segment;
      if (!kWhole && (next >= tile.cols || next % group_cols == 0)) add_group(k / group_cols * group_cols, group, sums, result);
    };
    int64_t k = 0;
    for (; k < tile.cols; k += a.segment) {
      multiply(k);
      if (k > 0) finish(k - a.segment);
      store(ints[k / a.segment % 2]);
    }
    finish(k - a.segment);
    for (int t = 0; t < kTiles; ++t) {
      for (int64_t m = 0; m < counts[t]; ++m) {
        for (int p = 0; p * kPanelRows < tile.rows; ++p) {
          const F32 sum = load_f32(&result[t][m][p * kLanes]);
          store_panel(&sum, tile.rows - p * kPanelRows, y + (row + t * a.height + m) * y_stride + p * kPanelRows);
        }
      }
    }
  }
};

// All rows of x against the panels of a Tile.
template <int kPlanes, bool kOwn, bool kWhole, bool kMinimum>
void multiply_panels(const Tile& tile, const QuantizedTiles& a, float* y, int64_t y_stride) {
  constexpr int kTiles = kPair / kPlanes;
  for (int64_t row = 0; row < a.batch; row += kTiles * a.height) {
    if (kTiles == 1 || a.batch - row > a.height) {
      MatrixProduct<kPlanes, kTiles>(tile, a, row).template run<kOwn, kWhole, kMinimum>(y, y_stride);
    } else {
      MatrixProduct<kPlanes, 1>(tile, a, row).template run<kOwn, kWhole, kMinimum>(y, y_stride);
    }
  }
}

template <int kPlanes>
auto panels_product(const DenseInt& w, const QuantizedTiles& a) {
  const bool whole = w.group <= a.segment || w.cols <= a.segment;
  if (w.zeros) return whole ? multiply_panels<kPlanes, true, true, false> : multiply_panels<kPlanes, true, false, false>;
  if (!whole) return multiply_panels<kPlanes, false, false, false>;
  return w.minima ? multiply_panels<kPlanes, false, true, true> : multiply_panels<kPlanes, false, true, false>;
}

bool matmul_int(const DenseInt& w, const QuantizedTiles& a, bool two_digits, float* y, int64_t y_stride) {
  if (!a.matrix) return below::kTable.matmul_int(w, a, two_digits, y, y_stride);
  const int64_t depth = depth_of(a), bytes = expanded_bytes(w.cols);
  const bool as_they_rest = w.bits == 8 && w.flip == 0 && w.cols % depth == 0;
  uint8_t* scratch = nullptr;
  if (!as_they_rest) {
    scratch = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(kPair * bytes)));
    if (!scratch) return false;
  }
  const auto expand = with_bits(w.bits, [](auto constant) { return expand_panel<decltype(constant){}>; });
  const auto multiply = two_digits ? panels_product<2>(w, a) : panels_product<1>(w, a);
  settle();
  configure_tiles(tile_shapes(a.height, depth));
  for (int64_t first = 0; first < w.rows; first += kPairRows) {
    Tile tile(w, first, kPair);
    if (scratch) {
      const bool two = tile.rows > kPanelRows;
      expand(tile.codes, w.cols, tile.flip, scratch);
      if (two) expand(tile.codes + tile.codes_stride, w.cols, tile.flip, scratch + bytes);
      settle();
      tile.codes = scratch;
      tile.codes_stride = two ? bytes : 0;
    }
    multiply(tile, a, y + first, y_stride);
  }
  release_tiles();
  std::free(scratch);
  return true;
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
