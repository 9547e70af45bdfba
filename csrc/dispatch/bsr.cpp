// Block-sparse weights: validation and products.
#include <algorithm>
#include <atomic>

#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kNearBytes = 512 << 10;  // of quantized x that is held at a time: what stays in L2
constexpr int64_t kMostRows = 128;         // and its rows: their sums stay in L1

int64_t block_rows_of(const BlockSparse& w) noexcept { return ceil_div(w.rows, w.blockrows); }

// A job over all block rows, split by what they store. `work`: bytes that a stored weight costs, of parallel_for's cost.
template <class Body>
Status for_block_rows(const BlockSparse& w, int64_t batch, int64_t scratch_bytes, const Body& body) noexcept {
  const int64_t block_rows = block_rows_of(w), weights = w.indptr[block_rows] * w.blockrows * w.blockcols;
  std::atomic<bool> no_memory{false};
  on_pool(w.indptr, block_rows, (weights * 4 + w.rows * 16) * std::max<int64_t>(1, batch / 4), [&](Range range) {
    Workspace scratch(scratch_bytes);
    if (!scratch.get()) return no_memory.store(true);
    body(range, scratch.get());
  });
  return no_memory.load() ? Status::kNoMemory : Status::kOk;
}

// Rows first .. first + batch - 1 of x times float weights: in place for one row without ragged edges, else as columns.
Status matmul_floats(const BlockSparse& w, const Operands& io, int64_t first, int64_t batch, Workspace& memory) noexcept {
  const KernelTable& kernel = kernels();
  const int64_t cols = ceil_div(w.cols, w.blockcols) * w.blockcols, lanes = batch == 1 ? 1 : batch <= 16 ? 16 : 32;
  const float* x = io.x + first * w.cols;
  ColumnsOfX columns{x, lanes, batch};
  if (lanes > 1 || cols != w.cols) {
    float* packed = reinterpret_cast<float*>(memory.get());
    on_pool(cols, 16, cols * batch * 8, [&](Range range) {
      kernel.pack_columns(x, w.cols, batch, lanes, range.begin, range.end, packed);
    });
    columns.floats = packed;
  }
  float* y = io.y + first * w.rows;
  return for_block_rows(w, batch, f32_bsr_scratch(w, lanes) * 4, [&](Range range, uint8_t* scratch) {
    kernel.matmul_f32_bsr(w, range.begin, range.end, columns, reinterpret_cast<float*>(scratch), y, w.rows);
  });
}

Status matmul_all_floats(const BlockSparse& w, const Operands& io) noexcept {
  const int64_t cols = ceil_div(w.cols, w.blockcols) * w.blockcols, lanes = std::min(kMostLanes, io.batch);
  Workspace memory(io.batch == 1 && cols == w.cols ? 0 : cols * (lanes == 1 ? 1 : lanes <= 16 ? 16 : 32) * 4);
  if (!memory.get()) return Status::kNoMemory;
  for (int64_t first = 0; first < io.batch; first += kMostLanes) {
    const Status status = matmul_floats(w, io, first, std::min(kMostLanes, io.batch - first), memory);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

// One row of x times integer weights.
Status matmul_integer_row(const BlockSparse& w, const Operands& io, int64_t row, bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  QuantizedTiles a{};
  a.batch = a.height = 1;
  a.blocks = ceil_div(w.cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.segment = 4;
  a.segments = a.padded / a.segment;
  const auto carve = [&](Carver carver) {
    a.quads = carver.take<uint8_t>(a.padded * 2);
    a.starts = carver.take<int32_t>(a.segments);
    a.steps = carver.take<float>(a.blocks);
    a.finite = carver.take<uint8_t>(1);
    return carver.used();
  };
  Workspace memory(carve(Carver(nullptr)));
  if (!memory.get()) return Status::kNoMemory;
  carve(Carver(memory.get()));
  a.finite[0] = 1;
  kernel.quantize_tiles(io.x + row * w.cols, w.cols, 8, 128, two_digits, a, 0, a.blocks);
  float* y = io.y + row * w.rows;
  const Status status = for_block_rows(w, 1, int_bsr_scratch(w.cols), [&](Range range, uint8_t* scratch) {
    kernel.matmul_int_bsr_row(w, range.begin, range.end, a, two_digits, scratch, y);
  });
  finish_rows(io, w.rows, a.finite, row, 1, {0, w.rows});
  return status;
}

Status matmul_integer_tiles(const BlockSparse& w, const Operands& io, int64_t first, int64_t batch, bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  LaneTiles a{};
  a.batch = batch;
  a.lanes = kernel.bsr_lanes(w, batch);
  a.blocks = ceil_div(w.cols, kBlock);
  a.padded = a.blocks * kBlock;
  const int64_t tiles = ceil_div(batch, a.lanes);
  const auto carve = [&](Carver carver) {
    a.quads = carver.take<uint8_t>(tiles * a.lanes * a.padded * 2);
    a.steps = carver.take<float>(tiles * a.lanes * a.blocks);
    a.finite = carver.take<uint8_t>(batch);
    return carver.used();
  };
  Workspace memory(carve(Carver(nullptr)));
  if (!memory.get()) return Status::kNoMemory;
  carve(Carver(memory.get()));
  std::fill(a.finite, a.finite + batch, uint8_t{1});
  on_pool(tiles * a.blocks, 1, batch * w.cols * 8, [&](Range units) {
    kernel.quantize_lanes(io.x + first * w.cols, w.cols, two_digits, a, units.begin, units.end);
  });
  float* y = io.y + first * w.rows;
  const int64_t sums = tiles * 2 * kPanelRows * a.lanes * 4;
  const Status status = for_block_rows(w, batch, int_bsr_scratch(w.cols) + sums, [&](Range range, uint8_t* scratch) {
    kernel.matmul_int_bsr(w, range.begin, range.end, a, two_digits, scratch, y, w.rows);
  });
  finish_rows(io, w.rows, a.finite, first, batch, {0, w.rows});
  return status;
}

// body(block rows, scratch of `cols` words), false where it finds no memory
template <class Body>
bool for_matrix(int64_t rows, int64_t cols, int64_t blockrows, const Body& body) noexcept {
  std::atomic<bool> no_memory{false};
  on_pool(ceil_div(rows, blockrows), 1, rows * cols * 4, [&](Range range) {
    Workspace any(cols * 4);
    if (!any.get() || !body(range, reinterpret_cast<uint32_t*>(any.get()))) no_memory.store(true);
  });
  return !no_memory.load();
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

bool count_blocks(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t* counts) noexcept {
  return for_matrix(m.rows, m.cols, blockrows, [&](Range range, uint32_t* any) {
    formats::count_blocks(m, blockrows, blockcols, range.begin, range.end, any, counts);
    return true;
  });
}

bool fill_blocks(const StoredMatrix& m, const BlockSparse& w) noexcept {
  return for_matrix(m.rows, m.cols, w.blockrows, [&](Range range, uint32_t* any) {
    formats::fill_blocks(m, w, range.begin, range.end, any);
    return true;
  });
}

bool fill_bsr_codes(const formats::FloatRows& m, const BlockSparse& w, int64_t* counts) noexcept {
  const bool done = for_matrix(m.rows, m.g.cols, w.blockrows, [&](Range range, uint32_t* any) {
    Workspace codes(w.blockrows * m.g.cols);
    if (!codes.get()) return false;
    formats::fill_bsr_codes(m, w, range.begin, range.end, reinterpret_cast<int8_t*>(codes.get()), any, counts);
    return true;
  });
  if (!done) return false;
  const int64_t block_rows = ceil_div(m.rows, w.blockrows), block = w.blockrows * w.blockcols / (w.values == Values::kInt4 ? 2 : 1);
  formats::close_gaps(const_cast<void*>(w.indices), w.wide_indices ? 4 : 2, block_rows, w.indptr, counts);
  formats::close_gaps(const_cast<void*>(w.data), block, block_rows, w.indptr, counts);
  return true;
}

void decode_bsr(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t count, float* out) noexcept {
  on_pool(count, 1, count * w.cols * 8, [&](Range range) {
    formats::decode_block_rows(w, ids, first, range.begin, range.end, out);
  });
}

Status matmul_bsr(const BlockSparse& w, const Operands& io, Activations mode) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  if (!w.scales) {
    const Status status = matmul_all_floats(w, io);
    finish_rows(io, w.rows, nullptr, 0, io.batch, {0, w.rows});
    return status;
  }
  if (mode == Activations::kFloat32) return Status::kBadArgument;  // the layout decodes row panels for that
  const bool two_digits = mode == Activations::kInt16;
  if (io.batch == 1) return matmul_integer_row(w, io, 0, two_digits);
  const int64_t near = kNearBytes / std::max<int64_t>(1, w.cols * (two_digits ? 2 : 1)) / kMostLanes * kMostLanes;
  const int64_t most = std::clamp(near, kMostLanes, kMostRows);
  for (int64_t first = 0; first < io.batch; first += most) {
    const Status status = matmul_integer_tiles(w, io, first, std::min(most, io.batch - first), two_digits);
    if (status != Status::kOk) return status;
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
