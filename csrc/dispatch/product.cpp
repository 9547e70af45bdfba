// out += a @ b for the algorithms: bits that depend neither on the number of threads nor on a BLAS.
#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kDepth = 512;           // terms that are summed before their sum is added
constexpr int64_t kPanelBytes = 1 << 19;  // of b: so much of it stays in L2 while rows of a pass by
constexpr int64_t kLine = 16;             // items of a column that are copied while their lines are near

void tile_of(const float* a, const float* b, int64_t depth, float* tile) noexcept {
  kernels().product_tile_f32(a, b, depth, tile);
}
void tile_of(const double* a, const double* b, int64_t depth, double* tile) noexcept {
  kernels().product_tile_f64(a, b, depth, tile);
}

// `count` of `width` vectors of `depth` items, side by side: out[item][width]. The others are 0.
template <class T>
void lay_out(const T* from, int64_t next_vector, int64_t next_item, int64_t count, int64_t width, int64_t depth, T* out) noexcept {
  if (next_vector == 1) {
    for (int64_t k = 0; k < depth; ++k) {
      std::copy_n(from + k * next_item, count, out + k * width);
      std::fill_n(out + k * width + count, width - count, T(0));
    }
    return;
  }
  for (int64_t begin = 0; begin < depth; begin += kLine) {
    const int64_t end = std::min(begin + kLine, depth);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t k = begin; k < end; ++k) out[k * width + i] = i < count ? from[i * next_vector + k * next_item] : T(0);
    }
  }
}

// At most kDepth terms; panels: [columns / width][depth][width].
template <class T, class Out>
void add_block(Strided<T> a, Strided<T> b, Strided<Out> out, int64_t rows, int64_t cols, int64_t depth, T* panels) noexcept {
  constexpr int64_t kWidth = kTileBytes / sizeof(T);
  const int64_t count = ceil_div(cols, kWidth);
  on_pool(count, 1, depth * cols * static_cast<int64_t>(sizeof(T)), [&](Range r) {
    for (int64_t p = r.begin; p < r.end; ++p) {
      lay_out(b.at + p * kWidth * b.col, b.col, b.row, std::min(kWidth, cols - p * kWidth), kWidth, depth, panels + p * depth * kWidth);
    }
  });
  on_pool(ceil_div(rows, kTileHeight), 1, rows * cols * depth / 5, [&](Range r) {
    alignas(64) T strip[kDepth * kTileHeight], tile[kTileHeight * kWidth];
    for (int64_t s = r.begin; s < r.end; ++s) {
      const int64_t first = s * kTileHeight, height = std::min<int64_t>(kTileHeight, rows - first);
      lay_out(a.at + first * a.row, a.row, a.col, height, int64_t{kTileHeight}, depth, strip);
      for (int64_t p = 0; p < count; ++p) {
        tile_of(strip, panels + p * depth * kWidth, depth, tile);
        const int64_t width = std::min(kWidth, cols - p * kWidth);
        for (int64_t m = 0; m < height; ++m) {
          Out* to = out.at + (first + m) * out.row + p * kWidth;
          for (int64_t n = 0; n < width; ++n) to[n] += static_cast<Out>(tile[m * kWidth + n]);
        }
      }
    }
  });
}

template <class T, class Out>
Status add(Strided<T> a, Strided<T> b, Strided<Out> out, int64_t rows, int64_t cols, int64_t depth) noexcept {
  constexpr int64_t kWidth = kTileBytes / sizeof(T);
  const int64_t line = std::min(depth, kDepth) * kTileBytes;  // of panels, for `width` columns
  const int64_t most = kPanelBytes / line * kWidth;
  const Workspace panels(ceil_div(std::min(cols, most), kWidth) * line);
  if (!panels.get()) return Status::kNoMemory;
  for (int64_t k = 0; k < depth; k += kDepth) {
    for (int64_t n = 0; n < cols; n += most) {
      add_block<T, Out>({a.at + k * a.col, a.row, a.col}, {b.at + k * b.row + n * b.col, b.row, b.col}, {out.at + n, out.row, 1}, rows,
                        std::min(most, cols - n), std::min(kDepth, depth - k), reinterpret_cast<T*>(panels.get()));
    }
  }
  return Status::kOk;
}

}  // namespace

Status add_product(Strided<float> a, Strided<float> b, Strided<float> out, int64_t rows, int64_t cols, int64_t depth) noexcept {
  return add(a, b, out, rows, cols, depth);
}
Status add_product(Strided<float> a, Strided<float> b, Strided<double> out, int64_t rows, int64_t cols, int64_t depth) noexcept {
  return add(a, b, out, rows, cols, depth);
}
Status add_product(Strided<double> a, Strided<double> b, Strided<double> out, int64_t rows, int64_t cols, int64_t depth) noexcept {
  return add(a, b, out, rows, cols, depth);
}

}  // namespace pumice::api
