// What the algorithms do weight by weight: the rows split over threads.
#include "dispatch/api.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kBytesPerError = 40;  // of parallel_for's cost: rounding computes longer than it reads

}  // namespace

void fix(const algorithms::Block& block, int64_t rows) noexcept {
  const int64_t updates = (block.stop - block.start) * (block.width - (block.start + block.stop) / 2);
  on_pool(rows, 4, rows * (updates * 4 + (block.stop - block.start) * kBytesPerError),
          [&](Range r) { algorithms::fix(block, r.begin, r.end); });
}

void grid_errors(const float* w, const float* weight, int64_t rows, int64_t cols, int64_t group, const Grid& grid,
                 float* error) noexcept {
  on_pool(rows, 1, rows * cols * kBytesPerError,
          [&](Range r) { algorithms::grid_errors(w, weight, cols, group, grid, r.begin, r.end, error); });
}

}  // namespace pumice::api
