// The table of one ISA: a function pointer per row of kernel_list.inc.
#pragma once

#include "views.hpp"

namespace pumice {

// Rows of x as the block-sparse kernels read them, columns outermost, so that one stored weight meets vectors of rows:
// floats[col][lanes]. Columns are padded with zeros to whole blocks of the weight. `lanes` is 16, 32, or 1 for a single row.
struct ColumnsOfX {
  const float* floats;
  int64_t lanes;
  int64_t batch;  // rows that count, <= lanes; the others are 0
};

// The same, quantized; several tiles of as many lanes as bsr_lanes says.
//
// quads:  [tile][step][plane][lane], 4 bytes each, the planes those of QuantizedTiles; digits are raised by 128 where the
//         ISA multiplies unsigned by signed bytes, so that weights may be the signed ones
// steps:  as: [tile][block][lane]
struct LaneTiles {
  uint8_t* quads;
  float* steps;
  uint8_t* finite;  // [row], as in QuantizedTiles
  int64_t batch, lanes, padded, blocks;
};

constexpr int64_t kMostLanes = 32;
constexpr int64_t kBlockScratch = 1024;  // weights that are widened at a time, if a block has no more

static inline int64_t block_scratch(const BlockSparse& w) {
  const int64_t size = w.blockrows * w.blockcols;
  return size > kBlockScratch ? size : kBlockScratch;
}
static inline int64_t f32_bsr_scratch(const BlockSparse& w, int64_t lanes) {
  return block_scratch(w) + (w.blockrows + kPanelRows) * lanes;
}
// Bytes; matmul_int_bsr has the sums of its tiles behind.
static inline int64_t int_bsr_scratch(int64_t cols) {
  const int64_t quads = ceil_div(cols, 4), runs = ceil_div(cols, kBlock) + 1;
  return ceil_div(quads * (64 + 8 + 4) + 4 + runs * (2 * 4 + 2 * 64 + 4) + 1024, 64) * 64;
}

// The same for csr: tiles of 16, 32 or 64 rows of x. `pass` is how many blocks of columns the kernels take at a time.
//
// floats: [col][lanes]       pairs: [col / 2][lanes][2], columns padded with zeros to whole blocks       scales: [block][lanes]
struct ColumnTile {
  const float* floats;
  const int16_t* pairs;
  const float* scales;
  int64_t lanes;
  int64_t batch;  // rows that count, <= lanes
  int64_t pass;
};

constexpr int64_t kMostColumnLanes = 64;
constexpr int64_t kChunkRows = 128;  // rows of w that the csr kernels take at most, so that their weights and sums stay near

// A tile of product_tile: so many rows, of so many bytes each.
constexpr int kTileHeight = 12, kTileBytes = 128;

struct KernelTable {
#define KERNEL(name, result, parameters) result(*name) parameters;
#include "kernels/kernel_list.inc"
#undef KERNEL
};

}  // namespace pumice
