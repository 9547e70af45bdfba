// Block-sparse rows: from matrices, and back. Portable; callers split block rows over threads.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace pumice::formats {

// A matrix of what is stored, row by row; 0 is a hole, and -0.0. `kind` of `values`: float, 16-bit patterns, or signed codes in
// int8, of int4 too.
struct Matrix {
  const void* values;
  int64_t rows, cols;
  Values kind;
};

// counts[block row]: blocks that hold a value, of the block rows begin .. end - 1. any: scratch of `cols` words.
void count_blocks(const Matrix& m, int64_t blockrows, int64_t blockcols, int64_t begin, int64_t end, uint32_t* any,
                  int64_t* counts) noexcept;
// Writes the indices and the data of these block rows, where w.indptr says, into the buffers that w names.
void fill_blocks(const Matrix& m, const BlockSparse& w, int64_t begin, int64_t end, uint32_t* any) noexcept;
// out[i][w.cols], begin <= i < end: row ids[i], or row first + i without ids, in float32.
void decode_block_rows(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t begin, int64_t end, float* out) noexcept;

}  // namespace pumice::formats
