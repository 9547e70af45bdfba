// Block-sparse weights, CSR among them: validation and products.
#include <algorithm>
#include <atomic>

#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

QuantizedRows carve_rows(Carver& carver, int64_t batch, int64_t cols) noexcept {
  QuantizedRows a{};
  a.blocks = ceil_div(cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.codes = carver.take<int16_t>(batch * a.padded);
  a.scales = carver.take<float>(batch * a.blocks);
  a.finite = carver.take<uint8_t>(batch);
  return a;
}

// x of some rows with columns outermost, padded to `cols` columns and `lanes` rows with zeros.
template <class T>
void transpose_tile(const T* x, int64_t stride, int64_t batch, int64_t used, int64_t cols, int64_t lanes,
                    T* out) noexcept {
  for (int64_t k = 0; k < cols; ++k) {
    for (int64_t m = 0; m < lanes; ++m) out[k * lanes + m] = m < batch && k < used ? x[m * stride + k] : T(0);
  }
}

// Rows first.. of x as the sparse kernels read them: one row in place where no padding is needed, else a tile.
Status matmul_bsr_tile(const BlockSparse& w, const Operands& io, int64_t first, int64_t batch, bool integer,
                       bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  const int64_t lanes = batch == 1 ? 1 : kSparseTile;
  const int64_t block_rows = ceil_div(w.rows, w.blockrows), padded_cols = ceil_div(w.cols, w.blockcols) * w.blockcols;
  const int64_t cols = std::max(padded_cols, ceil_div(w.cols, kBlock) * kBlock);
  const float* x = io.x + first * w.cols;
  Carver measure(nullptr);
  const auto layout = [&](Carver& carver, QuantizedRows& a, float*& floats, int16_t*& codes, float*& scales) {
    if (!integer) {
      floats = carver.take<float>(padded_cols * lanes);
      return;
    }
    a = carve_rows(carver, batch, w.cols);
    codes = carver.take<int16_t>(cols * lanes);
    scales = carver.take<float>(ceil_div(cols, kBlock) * lanes);
  };
  QuantizedRows a{};
  float *floats = nullptr, *scales = nullptr;
  int16_t* codes = nullptr;
  layout(measure, a, floats, codes, scales);
  Workspace memory(measure.used());
  if (!memory.get()) return Status::kNoMemory;
  Carver carver(memory.get());
  layout(carver, a, floats, codes, scales);

  SparseOperand operand{floats, codes, scales, lanes, batch};
  if (integer) {
    for (int64_t m = 0; m < batch; ++m) kernel.quantize_row(x + m * w.cols, w.cols, two_digits, a, m);
    transpose_tile(a.codes, a.padded, batch, a.padded, cols, lanes, codes);
    transpose_tile(a.scales, a.blocks, batch, a.blocks, ceil_div(cols, kBlock), lanes, scales);
  } else if (lanes == 1 && padded_cols == w.cols) {
    operand.floats = x;
  } else {
    transpose_tile(x, w.cols, batch, w.cols, padded_cols, lanes, floats);
  }
  const int64_t stored = w.indptr[block_rows] * w.blockrows * w.blockcols * 8 + w.rows * 16;
  on_pool(w.indptr, block_rows, stored * std::max<int64_t>(1, batch / 4), [&](Range range) {
    (integer ? kernel.matmul_int_bsr : kernel.matmul_f32_bsr)(w, range.begin, range.end, operand,
                                                              io.y + first * w.rows, w.rows);
  });
  finish_rows(io, w.rows, integer ? a.finite : nullptr, first, batch, {0, w.rows});
  return Status::kOk;
}

// Whether each index is above the one before it. The flag has the width of an index, so that compilers vectorise.
template <class Index>
bool rises(const Index* indices, int64_t count) noexcept {
  Index falls = 0;
  for (int64_t i = 1; i < count; ++i) falls = static_cast<Index>(falls | (indices[i - 1] >= indices[i] ? 1 : 0));
  return falls == 0;
}

template <class Index>
Fault check_rows(const int64_t* indptr, int64_t block_rows, const Index* indices, int64_t count,
                 int64_t block_cols) noexcept {
  if (indptr[0] != 0) return {1, 0};
  for (int64_t row = 0; row < block_rows; ++row) {
    if (indptr[row + 1] < indptr[row] || indptr[row + 1] > count) return {1, row};
  }
  if (indptr[block_rows] != count) return {1, block_rows};
  std::atomic<int64_t> first_bad{block_rows};
  on_pool(indptr, block_rows, count * static_cast<int64_t>(sizeof(Index)), [&](Range range) {
    for (int64_t row = range.begin; row < range.end; ++row) {
      const int64_t begin = indptr[row], end = indptr[row + 1];
      if (begin == end || (rises(indices + begin, end - begin) && indices[end - 1] < block_cols)) continue;
      int64_t known = first_bad.load();
      while (row < known && !first_bad.compare_exchange_weak(known, row)) {
      }
      return;
    }
  });
  const int64_t row = first_bad.load();
  if (row == block_rows) return {0, -1};
  const int64_t begin = indptr[row], end = indptr[row + 1];
  return {rises(indices + begin, end - begin) ? 2 : 3, row};
}

}  // namespace

Status matmul_bsr(const BlockSparse& w, const Operands& io, Activations mode) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  const bool integer = w.scales && mode != Activations::kFloat32;
  if (w.scales && !integer) return Status::kBadArgument;  // the layout decodes row panels for that
  for (int64_t first = 0; first < io.batch;) {
    const int64_t left = io.batch - first, batch = left < 4 ? 1 : std::min(kSparseTile, left);
    const Status status = matmul_bsr_tile(w, io, first, batch, integer, mode == Activations::kInt16);
    if (status != Status::kOk) return status;
    first += batch;
  }
  return Status::kOk;
}

Fault check_bsr(const int64_t* indptr, int64_t block_rows, const void* indices, bool wide_indices, int64_t count,
                int64_t block_cols) noexcept {
  return wide_indices
             ? check_rows(indptr, block_rows, static_cast<const uint32_t*>(indices), count, block_cols)
             : check_rows(indptr, block_rows, static_cast<const uint16_t*>(indices), count, block_cols);
}

}  // namespace pumice::api
