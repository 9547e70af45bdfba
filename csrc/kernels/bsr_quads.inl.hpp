// Block-sparse integer weights as matmul_int_bsr meets them: as quads, 4 columns of some rows, where they rest if blocks have
// whole quads of int8, else gathered into panels of 16 rows. Quads of one block of 128 columns are a run.
#pragma once

#include <cstring>

#include "kernels/matmul_f32_bsr.inl.hpp"  // index_at
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int64_t kBlockQuads = kBlock / 4;
constexpr int64_t kQuadsAhead = 2048;  // bytes that weights are prefetched ahead
constexpr int32_t kRaised = Dot<8, false>::kByteDigits ? 128 - kOffset<8> : 0;  // what digits of SignedDot are raised by

// Up to 16 rows of one block row.
struct Quads {
  const uint8_t* codes;  // code c of quad i, row r: codes[offsets[i] + r * stride + c]
  int64_t stride;
  int64_t rows, count, runs;
  bool rest_alone;       // the rows are all of their blocks
  uint32_t* columns;     // [count + 1] column / 4, rising; the last one is in no block
  int64_t* offsets;      // [count]
  uint32_t* ends;        // [runs] the first quad behind a run
  uint32_t* blocks;      // [runs]
  int32_t* starts;       // [runs][16] -kRaised * the sum of the codes, or what else a kernel keeps of its runs
  uint8_t* panels;       // [count][16][4] if they are gathered
};

// Parts of the scratch.
inline Quads carve_quads(uint8_t* scratch, int64_t cols) {
  const int64_t most = ceil_div(cols, 4), runs = ceil_div(cols, kBlock);
  Quads q{};
  q.panels = scratch;
  q.offsets = reinterpret_cast<int64_t*>(q.panels + most * 64 + 1024);
  q.columns = reinterpret_cast<uint32_t*>(q.offsets + most);
  q.ends = q.columns + most + 1;
  q.blocks = q.ends + runs + 1;
  q.starts = reinterpret_cast<int32_t*>(q.blocks + runs + 1);
  return q;
}

// Of rows `row` and up of the blocks first .. last - 1.
template <class Index>
inline void place_quads(const BlockSparse& w, const Index* indices, int64_t first, int64_t last, int64_t row, Quads& q) {
  const int64_t size = w.blockrows * w.blockcols, per_block = w.blockcols / 4, most = ceil_div(w.cols, 4), blocks = last - first;
  uint32_t* columns = q.columns;
  int64_t* offsets = q.offsets;
  q.codes = static_cast<const uint8_t*>(w.data) + first * size + row * w.blockcols;
  q.stride = w.blockcols;
  indices += first;
  q.count = blocks * per_block;
  if (per_block == 1) {
    for (int64_t i = 0; i < blocks; ++i) columns[i] = indices[i];
    for (int64_t i = 0; i < blocks; ++i) offsets[i] = i * size;
    return;
  }
  for (int64_t i = 0; i < blocks; ++i, columns += per_block, offsets += per_block) {
    const int64_t column = indices[i] * per_block, left = most - column, some = left < per_block ? left : per_block;
    for (int64_t j = 0; j < some; ++j) {
      columns[j] = static_cast<uint32_t>(column + j);
      offsets[j] = i * size + 4 * j;
    }
    q.count -= per_block - some;  // of the last block, if it is over the edge
  }
}

// The block row behind these blocks, if it is as large.
ALWAYS_INLINE inline void fetch_next_blocks(const Quads& q, int64_t bytes) {
  if (kLanes == 1) return;  // GCC warns of a loop that does nothing
  for (const uint8_t *next = q.codes + bytes, *stop = next + bytes; next < stop; next += 64) prefetch(next);
}

// Of int4, and of blocks without whole quads.
inline void gather_codes(const BlockSparse& w, int64_t first, int64_t last, int64_t row, Quads& q) {
  const int64_t cols = w.blockcols, size = w.blockrows * cols;
  uint32_t open = ~0u;
  for (int64_t i = first; i < last; ++i) {
    const int64_t k = index_at(w, i) * cols, stop = w.cols - k < cols ? w.cols - k : cols;
    for (int64_t c = 0; c < stop; ++c) {
      const auto column = static_cast<uint32_t>((k + c) / 4);
      if (column != open) {
        open = column;
        q.columns[q.count] = column;
        q.offsets[q.count] = q.count * 64;
        std::memset(q.panels + q.count++ * 64, 0, 64);
      }
      uint8_t* to = q.panels + (q.count - 1) * 64 + (k + c) % 4;
      const int64_t from = row * cols + c;
      if (w.values == Values::kInt8) {
        const uint8_t* data = static_cast<const uint8_t*>(w.data) + i * size + from;
        for (int64_t r = 0; r < q.rows; ++r) to[r * 4] = data[r * cols];
      } else {
        const uint8_t* data = static_cast<const uint8_t*>(w.data) + i * size / 2;
        for (int64_t r = 0; r < q.rows; ++r) {
          const int64_t at = from + r * cols;
          to[r * 4] = static_cast<uint8_t>((data[at / 2] >> (at % 2 * 4) & 15) - 8);
        }
      }
    }
  }
}

// Of int8 in whole quads.
inline void gather_words(const BlockSparse& w, int64_t first, int64_t last, int64_t row, Quads& q) {
  const int64_t cols = w.blockcols, per_block = cols / 4, most = ceil_div(w.cols, 4);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + (first * w.blockrows + row) * cols;
  for (int64_t i = first; i < last; ++i, data += w.blockrows * cols) {
    prefetch(data + kQuadsAhead);
    const int64_t column = index_at(w, i) * per_block, left = most - column, some = left < per_block ? left : per_block;
    for (int64_t j = 0; j < some; ++j, ++q.count) {
      q.columns[q.count] = static_cast<uint32_t>(column + j);
      q.offsets[q.count] = q.count * 64;
      uint8_t* to = q.panels + q.count * 64;
      for (int64_t r = 0; r < q.rows; ++r) std::memcpy(to + r * 4, data + r * cols + j * 4, 4);
      if (q.rows < kPanelRows) std::memset(to + q.rows * 4, 0, static_cast<size_t>((kPanelRows - q.rows) * 4));
    }
  }
}

// Where runs end: without a branch, which could not be foreseen.
inline void find_runs(Quads& q) {
  uint32_t *columns = q.columns, *ends = q.ends, *blocks = q.blocks;
  const int64_t count = q.count;
  columns[count] = ~0u;
  int64_t runs = 0;
  uint32_t block = columns[0] / static_cast<uint32_t>(kBlockQuads);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t next = columns[i + 1] / static_cast<uint32_t>(kBlockQuads);
    ends[runs] = static_cast<uint32_t>(i + 1);
    blocks[runs] = block;
    runs += block != next;
    block = next;
  }
  q.runs = runs;
}

// Whether quads rest as kernels could meet them.
inline bool has_quads(const BlockSparse& w) { return w.values == Values::kInt8 && w.blockcols % 4 == 0; }

// Calls body(row) for the rows of one block row, 16 at a time, with their quads in q, gathered unless `in_place`.
template <class Body>
inline void for_quads(const BlockSparse& w, int64_t block_row, Quads& q, bool in_place, const Body& body) {
  const int64_t top = block_row * w.blockrows, first = w.indptr[block_row], last = w.indptr[block_row + 1];
  for (int64_t row = 0; row < w.blockrows && top + row < w.rows; row += kPanelRows) {
    q.rows = w.blockrows - row < kPanelRows ? w.blockrows - row : kPanelRows;
    q.rest_alone = q.rows == w.blockrows;
    if (!in_place) {
      q.codes = q.panels;
      q.stride = 4;
      q.count = 0;
      has_quads(w) ? gather_words(w, first, last, row, q) : gather_codes(w, first, last, row, q);
    } else if (w.wide_indices) {
      place_quads(w, static_cast<const uint32_t*>(w.indices), first, last, row, q);
    } else {
      place_quads(w, static_cast<const uint16_t*>(w.indices), first, last, row, q);
    }
    find_runs(q);
    body(top + row);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
