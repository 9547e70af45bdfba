// Views: what crosses the border between Python and the core. They borrow memory and own nothing.
//
// Words (docs/architecture.md): w is (rows, cols) = (out_features, in_features); x is (batch, cols);
// y is (batch, rows). Kernel comments call them N, K and M.
#pragma once

#include <cstdint>

namespace pumice {

constexpr int64_t kPanelRows = 16;  // rows of one panel of the prepacked form
constexpr int64_t kBlock = 128;     // columns that share an activation scale
constexpr int64_t kMinGroup = 16;   // columns of the smallest group of weights
constexpr int64_t kPieceStep = 32;  // columns of a step of PiecesOfX

constexpr int32_t kOwnZeros = -1;   // in place of the zero of all codes: every group of every row has its own

// How x enters the product (docs/formats.md, "Activations").
enum class Activations : int { kInt16, kInt8, kFloat32 };

// How a stored value is written; int4 as unsigned codes, two in a byte, the first one in its low half.
enum class Values : int { kFloat32, kFloat16, kBfloat16, kInt8, kInt4 };

// A matrix as a file or a sparse layout stores it, row by row; to a layout 0 is a hole, and -0.0. `kind` of `values`: float,
// 16-bit patterns, or signed codes, a byte each, of int4 too.
struct StoredMatrix {
  const void* values;
  int64_t rows, cols;
  Values kind;
};
// Bytes of a value there.
static inline int64_t value_bytes(Values kind) {
  return kind == Values::kFloat32 ? 4 : kind == Values::kFloat16 || kind == Values::kBfloat16 ? 2 : 1;
}

// A matrix of any strides, in items.
template <class T>
struct Strided {
  T* at;
  int64_t row, col;
};

// The numbers that integer codes of a row stand for, one grid for each group of columns: scale * (code - zero), or
// scale * code + minimum. scales, zeros and minima are [row][groups]; zeros or minima or both are null: every zero is then
// 2^(bits-1), or 0 with minima.
struct Grid {
  const float* scales;
  const uint8_t* zeros;
  const float* minima;
  int64_t groups;
  int bits;
};

// Dense integer weights.
//
// canonical:  codes[row][word], 32-bit words; code c of a row is bits c*bits .. c*bits+bits-1 of the
//             row's little-endian bit stream; scales, zeros and minima are [row][group].
// prepacked:  codes[panel][word][16 rows]; scales, zeros and minima are [panel][group][16 rows]. Codes of 2, 4 and 8 bits
//             keep their words; those of 3, 5 and 6 are split into planes, see Unit.
//
//   word w of an int4 row:   bit 31                              0
//                            | 8w+7 | 8w+6 | ...  | 8w+1 | 8w+0 |     even columns in low nibbles
//   word w of an int8 row:   |    4w+3   |  ...     |    4w+0   |
struct DenseInt {
  const uint8_t* codes;
  const void* scales;     // float, or float16 bits if half_scales
  const uint8_t* zeros;   // or null
  int64_t rows, cols;
  int64_t group;          // columns of a group: a power of two >= 16, or >= cols
  int bits;               // 2, 3, 4, 5, 6 or 8
  int32_t zero;           // of all codes where zeros is null: 2^(bits-1), or 0 with minima
  uint8_t flip;           // 0x80 if 8-bit codes rest as signed integers, else 0
  bool half_scales;
  bool prepacked;
  const void* minima = nullptr;  // as scales, or null; w = scale * code + minimum, and zeros is null
};

// Functions here have internal linkage: kernel files include this header under their own instruction set, and the
// linker must never be able to pick such a copy for the baseline.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The fewest columns whose codes fill whole words of the prepacked form. A step is 4 columns, one in each byte of a word: step
// s of a low word are its columns s + P * i, i = 0..3, where P = 8 / low codes share a byte. Codes of 3, 5 and 6 bits are a low
// plane of 2 or 4 bits, in words like those of int2 or int4, and then one word with the high bits of all steps of the unit:
// those of step s, column i, are the bits `high` * s and up of byte i.
struct Unit {
  int cols, words, low_words, low, high;  // low, high: bits of the planes
};
static constexpr Unit unit_of(int bits) {
  return bits == 8   ? Unit{4, 1, 1, 8, 0}
         : bits == 6 ? Unit{16, 3, 2, 4, 2}
         : bits == 5 ? Unit{32, 5, 4, 4, 1}
         : bits == 4 ? Unit{8, 1, 1, 4, 0}
         : bits == 3 ? Unit{32, 3, 2, 2, 1}
                     : Unit{16, 1, 1, 2, 0};
}
static inline int64_t row_words(int64_t cols, int bits) { return ceil_div(cols * bits, 32); }
static inline int64_t panel_words(int64_t cols, int bits) {
  return ceil_div(cols, unit_of(bits).cols) * unit_of(bits).words;
}
static inline int64_t words_of(const DenseInt& w) {
  return w.prepacked ? panel_words(w.cols, w.bits) : row_words(w.cols, w.bits);
}
static inline int64_t groups_of(const DenseInt& w) { return w.group >= w.cols ? 1 : ceil_div(w.cols, w.group); }
// Scales or minima from entry `first` on.
static inline const void* scales_from(const DenseInt& w, const void* scales, int64_t first) {
  return scales ? static_cast<const uint8_t*>(scales) + first * (w.half_scales ? 2 : 4) : nullptr;
}

// The panels of prepacked weights that hold the rows first .. first + rows - 1; `first` is a multiple of kPanelRows.
static inline DenseInt panels_of(const DenseInt& w, int64_t first, int64_t rows) {
  const int64_t panel = first / kPanelRows, entries = panel * groups_of(w) * kPanelRows;
  DenseInt view = w;
  view.rows = rows;
  if (w.codes) view.codes = w.codes + panel * words_of(w) * kPanelRows * 4;
  view.scales = scales_from(w, w.scales, entries);
  view.minima = scales_from(w, w.minima, entries);
  if (w.zeros) view.zeros = w.zeros + entries;
  return view;
}

// Integer weights at the places of a bitmask, one symmetric zero; the form that kernels take.
//
// masks:    [panel][step], a word for 16 rows and 4 columns: bit 4 * r + i is row r of the panel, column 4 * step + i
// data:     of each panel, its stored codes word by word, in the order of the bits; of 4 bits two to a byte, the first in its low
//           half, each word from a new byte on. Followed by kDataPadding bytes, so that whole vectors can be loaded.
// offsets:  [panel] where its data begins
struct MaskedInt {
  DenseInt dense;  // the prepacked codes of 8 bits, not there, that these stand for: rows, cols, group, scales
  const uint64_t* masks;
  const uint8_t* data;
  const int64_t* offsets;
  int bits;  // 4 or 8; a hole is the code 2^(bits-1)
};

constexpr int64_t kDataPadding = 64;

// The panels of masked weights that hold the rows first .. first + rows - 1; `first` is a multiple of kPanelRows.
static inline MaskedInt panels_of(const MaskedInt& w, int64_t first, int64_t rows) {
  MaskedInt view = w;
  view.dense = panels_of(w.dense, first, rows);
  view.masks = w.masks + first / kPanelRows * ceil_div(w.dense.cols, 4);
  view.offsets = w.offsets + first / kPanelRows;
  return view;
}

// Weights at the places of a bitmask, row by row.
//
// bitmask: [row][ceil(cols / 8)], bit c % 8 of byte c / 8 is column c
// data:    the stored values of one row after the other, in order of columns; of int4 each row begins a byte
struct Bitmask {
  const uint8_t* bitmask;
  const void* data;
  const int64_t* offsets;  // [rows + 1]: where a row begins, in entries of data: values, or bytes of int4
  int64_t rows, cols;
  Values values;
};

// Dense float16 or bfloat16 weights: bits[row][col].
struct DenseHalf {
  const uint16_t* bits;
  int64_t rows, cols;
  bool bfloat16;
};

// Block-sparse rows, as scipy.sparse.bsr_array.
//
//   data[block][r][c], blocks of block row b at indptr[b] .. indptr[b+1]-1, block column indices[block]; of int4 two codes a
//   byte in the order of (r, c), where blockrows * blockcols is even, so that a block starts with a byte
struct BlockSparse {
  const int64_t* indptr;    // [ceil(rows / blockrows) + 1]
  const void* indices;      // uint16 or uint32, sorted and unique within a block row
  const void* data;         // float, float16 or bfloat16 bits, int8, or int4 codes
  const float* scales;      // [rows] of integers, else null
  int64_t rows, cols;
  int64_t blockrows, blockcols;
  bool wide_indices;        // uint32
  Values values;
};

// Compressed sparse rows, as scipy.sparse.csr_array: the stored values of row r are number indptr[r] .. indptr[r + 1] - 1.
//
//   data, int4:  |  1  0  |  3  2  |  .  4  |  1  0  | ...      two codes a byte; a row starts at byte starts[r]
//
// `runs` is what a column-blocked copy would add to the canonical form: where each block of columns begins. Kernels walk
// rows block by block with it, so that the x of a block stays in a near cache.
struct CompressedRows {
  const int64_t* indptr;  // [rows + 1]
  const void* indices;    // columns: uint16 or uint32, sorted and unique within a row
  const void* data;
  const int64_t* starts;  // [rows + 1], of int4, else null
  const float* scales;    // [rows], of integers, else null
  const uint8_t* runs;    // [rows][ceil(cols / kBlock)]: stored values of each block of columns; or null
  int64_t rows, cols;
  Values values;
  bool wide_indices;      // uint32
};

// Some rows of x, quantized (docs/formats.md, "Activations").
//
// codes:  a[row][padded]: int16, columns in order; `padded` = cols rounded up to whole blocks, the rest 0
// scales: as[row][block]
struct QuantizedRows {
  int16_t* codes;
  float* scales;
  uint8_t* finite;  // [row] 0: the row of x holds a NaN or an infinity, and its codes and scales are all 0
  int64_t padded, blocks;
};

// The same for the dense kernels: tiles of `height` rows (the last one of what is left), each read in one run.
//
// quads:  [tile][step][plane][row of the tile], 4 bytes each: the 4 columns of a step (Unit). Planes: an ISA with byte dot
//         products has the int8 digits hi and lo (or one plane), the others the int16 pairs (a0, a2) and (a1, a3).
// starts: -zero * (sum of a) over each segment; with zeros of their own per group, zero is 1 here. [tile][segment][row]
//         An ISA whose dot product takes code - 128 takes zero - 128 too.
// sums:   float(sum of a) * as of each segment, likewise, which minima are multiplied with; null for weights without minima
// steps:  as: [tile][block][row of the tile]
//
// A matrix unit takes rows of x instead of steps: quads are [tile][block][plane][row of `height`][kBlock], columns in the order
// of the steps. There the last tile too has room for `height` rows; what is in those that are missing does not matter.
struct QuantizedTiles {
  uint8_t* quads;
  int32_t* starts;
  float* sums;
  float* steps;
  uint8_t* finite;  // [row] 0: the row of x holds a NaN or an infinity, and its products mean nothing
  int64_t batch, height, padded, blocks;
  int64_t segment, segments;  // columns of a segment, min(group, 128); segments of a row
  bool matrix;                // for a matrix unit
};

// Rows of x as exact sums of bfloat16 pieces, for a matrix unit: x = high + middle + low, 8 bits of its significand each.
//
// words:  [step / 16][tile][step % 16][piece][pair][row of the tile], a pair of columns each; steps of 32 columns, tiles of 16
//         rows, what is missing is 0
struct PiecesOfX {
  uint32_t* words;
  int64_t batch, cols;
};

// x and y of one product, both C-contiguous.
struct Operands {
  const float* x;     // [batch][cols]
  float* y;           // [batch][rows]
  const float* bias;  // [rows] or null
  int64_t batch;
};

}  // namespace pumice
