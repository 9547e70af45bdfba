// Block-sparse rows: from matrices, and back. Portable; callers split block rows over threads.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace pumice::formats {

// counts[block row]: blocks that hold a value, of the block rows begin .. end - 1. any: scratch of `cols` words.
void count_blocks(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t begin, int64_t end, uint32_t* any,
                  int64_t* counts) noexcept;
// Writes the indices and the data of a block row of m, from block number `first` on, into the buffers that w names; how many.
int64_t fill_block_row(const StoredMatrix& m, int64_t block_row, const BlockSparse& w, int64_t first, uint32_t* any) noexcept;
// Those of these block rows, where w.indptr says.
void fill_blocks(const StoredMatrix& m, const BlockSparse& w, int64_t begin, int64_t end, uint32_t* any) noexcept;
// out[i][w.cols], begin <= i < end: row ids[i], or row first + i without ids, in float32.
void decode_block_rows(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t begin, int64_t end, float* out) noexcept;

}  // namespace pumice::formats
