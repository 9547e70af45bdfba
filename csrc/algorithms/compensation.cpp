#include "algorithms/compensation.hpp"

#include <algorithm>

#include "formats/integer.hpp"

namespace pumice::algorithms {
namespace {

constexpr int64_t kRows = 4;   // rows that share a row of the factor
constexpr int64_t kLanes = 8;  // independent sums, so that the compiler can use vectors without reordering

// One group of one row.
struct Levels {
  float scale, zero, minimum, top;

  // What `v` is after it has been encoded and decoded: docs/formats.md, "Integers".
  float nearest(float v) const noexcept {
    return formats::decoded(formats::nearest_code(v, scale, zero, minimum, top), scale, zero, minimum);
  }
};

Levels levels_of(const Grid& grid, int64_t row, int64_t group) noexcept {
  const int64_t i = row * grid.groups + group;
  const float middle = grid.minima ? 0.0f : static_cast<float>(1 << (grid.bits - 1));
  return {grid.scales[i], grid.zeros ? static_cast<float>(grid.zeros[i]) : middle, grid.minima ? grid.minima[i] : -0.0f,
          static_cast<float>((1 << grid.bits) - 1)};
}

void fix_rows(const Block& b, int64_t first, int64_t count) noexcept {
  float wanted[kRows][kMostColumns], error[kRows] = {};
  const int64_t width = b.width;
  for (int64_t r = 0; r < kRows; ++r) {
    if (r >= count) {  // lanes without a row compute zeros
      std::fill(wanted[r], wanted[r] + width, 0.0f);
      continue;
    }
    const float *w = b.w + (first + r) * b.stride, *drift = b.drift + (first + r) * b.stride;
    for (int64_t k = b.start; k < width; ++k) wanted[r][k] = w[k] + drift[k];
  }
  for (int64_t k = b.start; k < b.stop; ++k) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first + r;
      const float v = wanted[r][k];
      float fixed = v;
      if (b.keep && !b.keep[row * (b.stop - b.start) + k - b.start]) {
        fixed = 0.0f;
      } else if (b.grid) {
        fixed = levels_of(*b.grid, row, b.group_of[k]).nearest(v);
      }
      error[r] = b.w[row * b.stride + k] - fixed;
      b.drift[row * b.stride + k] = fixed;
      b.errors[row * width + k] = error[r];
      const double missed = static_cast<double>(v) - static_cast<double>(fixed);
      b.loss[row] += static_cast<double>(b.variance[k]) * missed * missed;
    }
    const float* factor = b.factor + k * width;
    for (int64_t m = k + 1; m < width; ++m) {
      const float f = factor[m];
      for (int64_t r = 0; r < kRows; ++r) wanted[r][m] += error[r] * f;
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const float* w = b.w + (first + r) * b.stride;
    float* drift = b.drift + (first + r) * b.stride;
    for (int64_t k = b.stop; k < width; ++k) drift[k] = wanted[r][k] - w[k];
  }
}

}  // namespace

void fix(const Block& block, int64_t begin, int64_t end) noexcept {
  for (int64_t row = begin; row < end; row += kRows) fix_rows(block, row, std::min(kRows, end - row));
}

void grid_errors(const float* w, const float* weight, int64_t cols, int64_t group, const Grid& grid, int64_t begin,
                 int64_t end, float* error) noexcept {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t g = 0; g < grid.groups; ++g) {
      const Levels levels = levels_of(grid, row, g);
      const int64_t first = g * group, count = std::min(group, cols - first);
      const float *v = w + row * cols + first, *importance = weight ? weight + first : nullptr;
      float sums[kLanes] = {};
      for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t lanes = std::min(kLanes, count - i);
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const float missed = v[i + lane] - levels.nearest(v[i + lane]);
          sums[lane] += (importance ? importance[i + lane] : 1.0f) * (missed * missed);
        }
      }
      float sum = 0.0f;
      for (float lane : sums) sum += lane;
      error[row * grid.groups + g] = sum;
    }
  }
}

}  // namespace pumice::algorithms
