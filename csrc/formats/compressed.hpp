// Compressed sparse rows: from matrices, and back. Portable; callers split rows over threads.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace pumice::formats {

// Where fill_rows writes: the buffers behind a CompressedRows with the same indptr and starts.
struct RowBuffers {
  void* indices;
  void* data;
};

// counts[row]: the stored values of rows begin .. end - 1.
void count_rows(const StoredMatrix& m, int64_t begin, int64_t end, int64_t* counts) noexcept;
// The columns and values of rows begin .. end - 1, where w.indptr and w.starts say.
void fill_rows(const StoredMatrix& m, int64_t begin, int64_t end, const CompressedRows& w, RowBuffers out) noexcept;
// out[i][cols]: row ids[i], or row first + i without ids, in float32.
void decode_rows(const CompressedRows& w, const int64_t* ids, int64_t first, int64_t begin, int64_t end, float* out) noexcept;
// w.runs of rows begin .. end - 1.
void count_runs(const CompressedRows& w, int64_t begin, int64_t end, uint8_t* runs) noexcept;
// int4 codes of `count` stored values from byte `packed` on, as signed bytes.
void unpack_signed(const uint8_t* packed, int64_t count, int8_t* codes) noexcept;

}  // namespace pumice::formats
