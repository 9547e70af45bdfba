// From float32 rows to the integer codes that sparse layouts store: what is 0 is never rounded, and what is rounded to 0 is not
// stored. How many those are is known at the end only, so each row has room for all that is not 0, and rows are moved together
// afterwards. Portable; callers split rows over threads.
#pragma once

#include <cstdint>

#include "formats/compressed.hpp"
#include "formats/integer.hpp"

namespace pumice::formats {

struct FloatRows {
  const float* w;       // [rows][g.cols]
  const float* scales;  // [rows][g.groups]
  int64_t rows;
  Groups g;             // 4 or 8 bits
};

// Columns and codes of rows begin .. end - 1 from number indptr[row] on; codes of int4 from byte starts[row] on, else null.
// counts[row]: how many they are.
void fill_csr_codes(const FloatRows& m, int64_t begin, int64_t end, const int64_t* indptr, const int64_t* starts, RowBuffers out,
                    bool wide_indices, int64_t* counts) noexcept;
// Bits and codes of rows begin .. end - 1, codes from entry offsets[row] of data on.
void fill_bitmask_codes(const FloatRows& m, int64_t begin, int64_t end, const int64_t* offsets, uint8_t* bitmask, uint8_t* data,
                        int64_t* counts) noexcept;
// Block columns and codes of block rows begin .. end - 1, from block number w.indptr[block row] on, into the buffers that w names.
// counts[block row]: how many they are. codes and any: scratch of w.blockrows * w.cols bytes and w.cols words.
void fill_bsr_codes(const FloatRows& m, const BlockSparse& w, int64_t begin, int64_t end, int8_t* codes, uint32_t* any,
                    int64_t* counts) noexcept;
// Moves rows together: counts[row] values from number room[row] on, of `size` bytes, or with size 0 two in a byte.
void close_gaps(void* values, int64_t size, int64_t rows, const int64_t* room, const int64_t* counts) noexcept;

}  // namespace pumice::formats
