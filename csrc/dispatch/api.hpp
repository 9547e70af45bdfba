// Everything Cython sees. Shapes are checked by the binding; these split the work over threads and call the
// kernels of the chosen ISA.
#pragma once

#include <cstdint>

#include "formats/bsr.hpp"
#include "formats/integer.hpp"
#include "status.hpp"
#include "views.hpp"

namespace pumice::api {

// ISAs, best first. `index` counts the ones that this machine can run.
int isa_count() noexcept;
const char* isa_name_at(int index) noexcept;
const char* current_isa() noexcept;
bool choose_isa(const char* name) noexcept;  // false: unknown here
const char* compiler() noexcept;

void group_range(const float* w, int64_t rows, formats::Groups g, float* low, float* high) noexcept;
void encode(const float* w, const float* scales, const uint8_t* zeros, const float* minima, int64_t rows,
            formats::Groups g, uint8_t* packed) noexcept;
void decode(const uint8_t* packed, const float* scales, const uint8_t* zeros, const float* minima, int64_t rows,
            formats::Groups g, uint8_t flip, float* w) noexcept;
void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* panels) noexcept;
// packed[i] = row ids[i]
void unprepack(const uint8_t* panels, const int64_t* ids, int64_t count, int64_t cols, int bits, uint8_t* packed) noexcept;

Status matmul_dense_int(const DenseInt& w, const Operands& io, Activations mode) noexcept;
Status matmul_dense_half(const DenseHalf& w, const Operands& io) noexcept;
Status matmul_bsr(const BlockSparse& w, const Operands& io, Activations mode) noexcept;

// Block-sparse weights from matrices, and back: formats/bsr.hpp. False: no memory for the scratch.
bool count_blocks(const formats::Matrix& m, int64_t blockrows, int64_t blockcols, int64_t* counts) noexcept;
bool fill_blocks(const formats::Matrix& m, const BlockSparse& w) noexcept;
void decode_bsr(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t count, float* out) noexcept;

// First bad block row and the rule it breaks: 0 none, 1 indptr falls or leaves the indices, 2 an index is out of
// range, 3 indices are not sorted and unique.
struct Fault {
  int rule;
  int64_t row;
};
Fault check_bsr(const int64_t* indptr, int64_t block_rows, const void* indices, bool wide_indices, int64_t count,
                int64_t block_cols) noexcept;

}  // namespace pumice::api
