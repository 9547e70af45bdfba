// Fixing weights column by column while later columns make up for it (src/pumice/compensation.py). Portable C++.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace pumice::algorithms {

constexpr int64_t kMostColumns = 128;  // of a block

// A block of at most kMostColumns columns, of which [start, stop) are fixed now; before `start` all are.
//
// w, drift, errors:  one row every `stride` floats (errors: every `width`), the first column of the block first.
//   drift    of columns not fixed yet: what the errors so far add to the weight; of fixed ones: the fixed value
//   errors   of fixed columns: w - fixed value
// factor:    [width][width], unit upper triangular (above the diagonal; the rest is not read)
// variance:  [width], what a squared deviation costs
// keep:      [row][stop - start], 0 where a weight becomes 0; or null
// grid:      or null: then weights that stay take the value that the errors ask for
// group_of:  [width], the group of each column
// loss:      [row], raised by variance * (wanted - fixed)^2
struct Block {
  const float* w;
  float* drift;
  float* errors;
  int64_t stride, width, start, stop;
  const float* factor;
  const float* variance;
  const uint8_t* keep;
  const Grid* grid;
  const int32_t* group_of;
  double* loss;
};

void fix(const Block& block, int64_t begin, int64_t end) noexcept;

// error[row][group] = sum of weight[col] * (w - nearest of the grid)^2; `weight` may be null.
void grid_errors(const float* w, const float* weight, int64_t cols, int64_t group, const Grid& grid, int64_t begin,
                 int64_t end, float* error) noexcept;

}  // namespace pumice::algorithms
