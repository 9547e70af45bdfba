// Everything Cython sees. Shapes are checked by the binding; these split the work over threads and call the
// kernels of the chosen ISA.
#pragma once

#include <cstdint>

#include "algorithms/compensation.hpp"
#include "formats/bitmask.hpp"
#include "formats/float8.hpp"
#include "formats/halves.hpp"
#include "formats/compressed.hpp"
#include "formats/bsr.hpp"
#include "formats/integer.hpp"
#include "formats/stored_codes.hpp"
#include "status.hpp"
#include "views.hpp"

namespace pumice::api {

// ISAs, best first. `index` counts the ones that this machine can run.
int isa_count() noexcept;
const char* isa_name_at(int index) noexcept;
const char* current_isa() noexcept;
bool choose_isa(const char* name) noexcept;  // false: unknown here
const char* compiler() noexcept;

int64_t first_nonfinite(const float* values, int64_t count) noexcept;
// Rows of floats as they are stored: the ranges of groups, NaN of one that is not finite; codes, and what row_energies says of
// them unless noise is null.
void group_range(const StoredMatrix& w, int64_t group, float* low, float* high) noexcept;
void encode(const StoredMatrix& w, const Grid& grid, int64_t group, uint8_t* packed, double* noise, double* signal) noexcept;
void row_energies(const float* exact, const float* decoded, int64_t rows, int64_t cols, double* noise, double* signal) noexcept;
void decode(const uint8_t* packed, const Grid& grid, int64_t group, int64_t rows, int64_t cols, uint8_t flip, float* w) noexcept;
void unpack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* codes) noexcept;
void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* panels) noexcept;
// packed[i] = row ids[i]
void unprepack(const uint8_t* panels, const int64_t* ids, int64_t count, int64_t cols, int bits, uint8_t* packed) noexcept;

// The SHA-256s of `count` pieces of `length` bytes, a multiple of 64: 32 bytes each. False where the processor has no instructions
// for that.
bool sha256_pieces(const uint8_t* data, int64_t count, int64_t length, uint8_t* digests) noexcept;

// The flat index of the first finite value that rounds to infinity, or -1.
int64_t encode_halves(const float* values, bool bfloat16, int64_t count, uint16_t* bits) noexcept;
void decode_halves(const uint16_t* bits, bool bfloat16, int64_t count, float* values) noexcept;

Status matmul_dense_int(const DenseInt& w, const Operands& io, Activations mode) noexcept;
Status matmul_dense_half(const DenseHalf& w, const Operands& io) noexcept;
Status matmul_dense_float8(const DenseFloat8& w, const Operands& io) noexcept;
// Bitmasks: see formats/bitmask.hpp.
void find_places(const void* values, Values type, int64_t rows, int64_t cols, int kept, int of, uint8_t* bitmask,
                 int64_t* counts) noexcept;
void count_places(const uint8_t* bitmask, int64_t rows, int64_t cols, int kept, int of, int64_t* counts) noexcept;
void gather(const void* values, const Bitmask& w, void* data) noexcept;
void fill_bitmask_codes(const formats::FloatRows& m, const int64_t* offsets, uint8_t* bitmask, uint8_t* data, int64_t* counts) noexcept;
void scatter(const Bitmask& w, int64_t begin, int64_t end, int64_t stride, void* out) noexcept;
void panel_masks(const Bitmask& w, uint64_t* masks, int64_t* sizes) noexcept;
Status panel_data(const Bitmask& w, const uint64_t* masks, const int64_t* offsets, uint8_t* data) noexcept;
void row_masks(const uint64_t* masks, int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* bitmask,
               int64_t* counts) noexcept;
Status row_data(const MaskedInt& panels, const Bitmask& w, int64_t begin, int64_t end, uint8_t* data) noexcept;
Status matmul_masked_int(const MaskedInt& w, const Operands& io, Activations mode) noexcept;
// `dense`: shape, group and scales of integer codes, as canonical codes of 8 bits; null for floats.
Status matmul_bitmask(const Bitmask& w, const DenseInt* dense, const Operands& io, Activations mode) noexcept;
Status matmul_bsr(const BlockSparse& w, const Operands& io, Activations mode) noexcept;

// Compressed sparse rows. w.indptr (and w.starts) say where a fill goes; counts[row] are the stored values of each row.
Status matmul_csr(const CompressedRows& w, const Operands& io, Activations mode) noexcept;
void count_csr(const StoredMatrix& m, int64_t* counts) noexcept;
void fill_csr(const StoredMatrix& m, const CompressedRows& w, formats::RowBuffers out) noexcept;
// From floats: counts[row] codes each, moved together; indptr, starts and offsets say how much room each row has.
void fill_csr_codes(const formats::FloatRows& m, const int64_t* indptr, const int64_t* starts, formats::RowBuffers out,
                    bool wide_indices, int64_t* counts) noexcept;
void decode_csr(const CompressedRows& w, const int64_t* ids, int64_t first, int64_t count, float* out) noexcept;
void count_runs(const CompressedRows& w, uint8_t* runs) noexcept;
// Block-sparse weights from matrices, and back: formats/bsr.hpp. False: no memory for the scratch.
bool count_blocks(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t* counts) noexcept;
bool fill_blocks(const StoredMatrix& m, const BlockSparse& w) noexcept;
// From floats: counts[block row] blocks of codes each, moved together; w.indptr says how much room each block row has.
bool fill_bsr_codes(const formats::FloatRows& m, const BlockSparse& w, int64_t* counts) noexcept;
void decode_bsr(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t count, float* out) noexcept;

// First bad block row and the rule it breaks: 0 none, 1 indptr falls or leaves the indices, 2 an index is out of
// range, 3 indices are not sorted and unique.
struct Fault {
  int rule;
  int64_t row;
};
Fault check_bsr(const int64_t* indptr, int64_t block_rows, const void* indices, bool wide_indices, int64_t count,
                int64_t block_cols) noexcept;

// out[rows][cols] += a @ b, sums of `depth` terms in their order, 512 at a time: the same bits whatever the number of threads.
// out.col is 1.
Status add_product(Strided<float> a, Strided<float> b, Strided<float> out, int64_t rows, int64_t cols, int64_t depth) noexcept;
Status add_product(Strided<float> a, Strided<float> b, Strided<double> out, int64_t rows, int64_t cols, int64_t depth) noexcept;
Status add_product(Strided<double> a, Strided<double> b, Strided<double> out, int64_t rows, int64_t cols, int64_t depth) noexcept;

// Algorithms: algorithms/compensation.hpp.
void fix(const algorithms::Block& block, int64_t rows) noexcept;
void grid_errors(const float* w, const float* weight, int64_t rows, int64_t cols, int64_t group, const Grid& grid,
                 float* error) noexcept;

}  // namespace pumice::api
