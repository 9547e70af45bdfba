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

struct KernelTable {
#define KERNEL(name, result, parameters) result(*name) parameters;
#include "kernels/kernel_list.inc"
#undef KERNEL
};

}  // namespace pumice
