// Views: what crosses the border between Python and the core. They borrow memory and own nothing.
//
// Words (docs/architecture.md): w is (rows, cols) = (out_features, in_features); x is (batch, cols);
// y is (batch, rows). Kernel comments call them N, K and M.
#pragma once

#include <cstdint>

namespace pumice {

constexpr int64_t kPanelRows = 16;  // rows of one panel of the prepacked form
constexpr int64_t kBlock = 128;     // columns that share an activation scale

// How x enters the product (docs/formats.md, "Activations").
enum class Activations : int { kInt16, kInt8, kFloat32 };

// Dense integer weights.
//
// canonical:  codes[row][word], 32-bit words; code c of a row is bits c*bits .. c*bits+bits-1 of the
//             row's little-endian bit stream; scales and zeros are [row][group].
// prepacked:  codes[panel][word][16 rows]; scales and zeros are [panel][group][16 rows].
//
//   word w of an int4 row:   bit 31                              0
//                            | 8w+7 | 8w+6 | ...  | 8w+1 | 8w+0 |     even columns in low nibbles
//   word w of an int8 row:   |    4w+3   |  ...     |    4w+0   |
struct DenseInt {
  const uint8_t* codes;
  const void* scales;     // float, or float16 bits if half_scales
  const uint8_t* zeros;   // null: every zero is 2^(bits-1)
  int64_t rows, cols;
  int64_t group;          // columns of a group: a power of two >= 16, or >= cols
  int bits;               // 4 or 8
  uint8_t flip;           // 0x80 if 8-bit codes rest as signed integers, else 0
  bool half_scales;
  bool prepacked;
};

// Functions here have internal linkage: kernel files include this header under their own instruction set, and the
// linker must never be able to pick such a copy for the baseline.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t words_of(const DenseInt& w) { return ceil_div(w.cols * w.bits, 32); }
static inline int64_t groups_of(const DenseInt& w) { return w.group >= w.cols ? 1 : ceil_div(w.cols, w.group); }

// Dense float16 or bfloat16 weights: bits[row][col].
struct DenseHalf {
  const uint16_t* bits;
  int64_t rows, cols;
  bool bfloat16;
};

// Block-sparse rows, as scipy.sparse.bsr_array; CSR is blockrows = blockcols = 1.
//
//   data[block][r][c], blocks of block row b at indptr[b] .. indptr[b+1]-1, block column indices[block]
struct BlockSparse {
  const int64_t* indptr;    // [ceil(rows / blockrows) + 1]
  const void* indices;      // uint16 or uint32, sorted and unique within a block row
  const void* data;         // float, or int8
  const float* scales;      // [rows] for int8 data, else null
  int64_t rows, cols;
  int64_t blockrows, blockcols;
  bool wide_indices;        // uint32
};

// Quantized activations of some rows of x, as kernels read them (docs/formats.md, "Activations").
//
// codes:  a[row][padded]: int16, columns in order; `padded` = cols rounded up to whole blocks, the rest 0
// scales: as[row][block]
// quads:  what the dense kernels multiply: [tile of `height` rows][word][parity][plane][row of the tile], 4 bytes each, so
//         that a tile is read in one run. A quad is 4 columns that meet one 32-bit lane of codes; a word of int4 codes
//         holds the even columns of 8 in its low nibbles, hence the parities. Planes: an ISA with byte dot products has
//         the int8 digits hi and lo (or one plane), the others the int16 pairs (a0, a2) and (a1, a3).
// starts: -zero * (sum of a) over each segment, min(group, 128) columns; with zeros of their own per group, zero is 1 here.
//         [tile][segment][row of the tile], as `steps`, which repeats `scales`: [tile][block][row of the tile]
struct QuantizedRows {
  int16_t* codes;
  float* scales;
  uint8_t* quads;
  int32_t* starts;
  float* steps;
  uint8_t* finite;  // [row] 0: the row of x holds a NaN or an infinity, and its codes and scales are all 0
  int64_t padded, blocks, segments, height;
};

// x and y of one product, both C-contiguous.
struct Operands {
  const float* x;     // [batch][cols]
  float* y;           // [batch][rows]
  const float* bias;  // [rows] or null
  int64_t batch;
};

}  // namespace pumice
