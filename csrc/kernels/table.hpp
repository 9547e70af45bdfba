// The table of one ISA: a function pointer per row of kernel_list.inc.
#pragma once

#include "views.hpp"

namespace pumice {

// x as the sparse kernels read it: some rows of x, columns outermost, so that one stored weight meets a vector of rows.
//
// floats: [col][lanes]       int16 codes: [col][lanes]        scales: [block][lanes] (int16 only)
//
// `lanes` is kSparseTile, or 1 for a single row. Columns are padded to whole blocks of the weight with zeros; so are lanes.
struct SparseOperand {
  const float* floats;
  const int16_t* codes;
  const float* scales;
  int64_t lanes;
  int64_t batch;  // rows that count, <= lanes
};

constexpr int64_t kSparseTile = 32;

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

struct KernelTable {
#define KERNEL(name, result, parameters) result(*name) parameters;
#include "kernels/kernel_list.inc"
#undef KERNEL
};

}  // namespace pumice
