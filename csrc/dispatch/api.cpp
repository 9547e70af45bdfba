#include "dispatch/api.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "dispatch/parallel.hpp"
#include "dispatch/table.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kBatchChunk = 256;      // rows of x whose quantized form is held at a time
constexpr int64_t kTilePanels = 2;           // panels that matmul_int gets at a time
constexpr int64_t kHugePage = 2 << 20;       // bytes, on x86-64 and arm64 as they are mostly set up
constexpr int64_t kEncodeBytesPerCode = 40;  // of parallel_for's cost: encoding computes longer than it reads

// Aligned scratch that is freed at the end of the scope; `get` is null if there is no memory.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) noexcept
      : memory_(std::aligned_alloc(64, static_cast<size_t>(ceil_div(std::max<int64_t>(bytes, 1), 64) * 64))) {}
  ~Workspace() { std::free(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint8_t* get() const noexcept { return static_cast<uint8_t*>(memory_); }

 private:
  void* memory_;
};

// Hands out consecutive parts of a workspace, each on a cache line of its own. With a null base it only measures.
class Carver {
 public:
  explicit Carver(uint8_t* base) noexcept : base_(base) {}
  template <class T>
  T* take(int64_t count) noexcept {
    T* at = reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return at;
  }
  int64_t used() const noexcept { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

// Calls body(Range) on the pool: a lambda as a Job.
template <class Body>
void on_pool(int64_t count, int64_t align, int64_t cost_bytes, const Body& body) noexcept {
  parallel_for(
      count, align, cost_bytes, [](void* context, Range range) noexcept { (*static_cast<const Body*>(context))(range); },
      const_cast<Body*>(&body));
}

template <class Body>
void on_pool(const int64_t* prefix, int64_t count, int64_t cost_bytes, const Body& body) noexcept {
  parallel_for(
      prefix, count, 1, cost_bytes,
      [](void* context, Range range) noexcept { (*static_cast<const Body*>(context))(range); },
      const_cast<Body*>(&body));
}

// What is left to do of the rows begin .. end-1 of w for `batch` rows of x from row `first` on: the bias, and NaN where the
// row of x was not finite.
void finish_rows(const Operands& io, int64_t rows, const uint8_t* finite, int64_t first, int64_t batch, Range range) noexcept {
  if (!io.bias && !finite) return;
  for (int64_t m = 0; m < batch; ++m) {
    float* y = io.y + (first + m) * rows;
    if (finite && !finite[m]) {
      std::fill(y + range.begin, y + range.end, std::numeric_limits<float>::quiet_NaN());
    } else if (io.bias) {
      for (int64_t n = range.begin; n < range.end; ++n) y[n] += io.bias[n];
    }
  }
}

QuantizedRows carve_rows(Carver& carver, int64_t batch, int64_t cols) noexcept {
  QuantizedRows a{};
  a.blocks = ceil_div(cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.codes = carver.take<int16_t>(batch * a.padded);
  a.scales = carver.take<float>(batch * a.blocks);
  a.finite = carver.take<uint8_t>(batch);
  return a;
}

QuantizedTiles carve_tiles(Carver& carver, const DenseInt& w, int64_t batch) noexcept {
  QuantizedTiles a{};
  a.batch = batch;
  a.blocks = ceil_div(w.cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.segment = w.group < kBlock && w.group < w.cols ? w.group : kBlock;
  a.segments = a.padded / a.segment;
  a.quads = carver.take<uint8_t>(batch * a.padded * 2);
  a.starts = carver.take<int32_t>(batch * a.segments);
  if (w.minima) a.sums = carver.take<float>(batch * a.segments);
  a.steps = carver.take<float>(batch * a.blocks);
  a.finite = carver.take<uint8_t>(batch);
  return a;
}

// Rows first .. first + rows - 1 of canonical weights as panels in `scratch`, so that both forms meet the same kernel and
// give the same bits.
DenseInt transposed(const DenseInt& w, int64_t first, int64_t rows, uint8_t* scratch) noexcept {
  const int64_t groups = groups_of(w), panels = ceil_div(rows, kPanelRows);
  DenseInt view = w;
  view.rows = rows;
  view.prepacked = true;
  Carver carver(scratch);
  uint8_t* codes = carver.take<uint8_t>(panels * words_of(view) * kPanelRows * 4);
  formats::prepack(w.codes + first * words_of(w) * 4, rows, w.cols, w.bits, 0, panels, codes);
  // [row][group] -> [panel][group][row of the panel], entries of `size` bytes
  const auto by_panel = [&](const void* entries, int64_t size) -> const uint8_t* {
    if (!entries) return nullptr;
    const int64_t bytes = panels * groups * kPanelRows * size;
    uint8_t* out = carver.take<uint8_t>(bytes);
    std::memset(out, 0, static_cast<size_t>(bytes));
    const uint8_t* from = static_cast<const uint8_t*>(entries) + first * groups * size;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t g = 0; g < groups; ++g, from += size) {
        const int64_t to = (r / kPanelRows * groups + g) * kPanelRows + r % kPanelRows;
        std::memcpy(out + to * size, from, static_cast<size_t>(size));
      }
    }
    return out;
  };
  view.codes = codes;
  view.scales = by_panel(w.scales, w.half_scales ? 2 : 4);
  view.minima = by_panel(w.minima, w.half_scales ? 2 : 4);
  view.zeros = by_panel(w.zeros, 1);
  return view;
}

// Runs kernel(view, rows) over all rows of w: what a thread gets, or of canonical weights what fits into scratch. It returns
// false if it has no memory.
template <class Kernel>
Status for_panels(const DenseInt& w, int64_t batch, const Kernel& kernel) noexcept {
  std::atomic<bool> no_memory{false};
  const int64_t bytes = w.rows * words_of(w) * 4, align = kTilePanels * kPanelRows;
  on_pool(w.rows, align, bytes * std::max<int64_t>(1, batch / 4), [&](Range range) {
    if (w.prepacked) {
      if (!kernel(panels_of(w, range.begin, range.end - range.begin), range)) no_memory.store(true);
      return;
    }
    const int64_t per_group = w.minima ? 8 : 5;
    Workspace scratch((panel_words(w.cols, w.bits) * 4 + groups_of(w) * per_group) * align + 4 * 64);
    if (!scratch.get()) return no_memory.store(true);
    for (Range some{range.begin, 0}; some.begin < range.end; some.begin = some.end) {
      some.end = std::min(some.begin + align, range.end);
      if (!kernel(transposed(w, some.begin, some.end - some.begin, scratch.get()), some)) return no_memory.store(true);
    }
  });
  return no_memory.load() ? Status::kNoMemory : Status::kOk;
}

Status matmul_dense_int_chunk(const DenseInt& w, const Operands& io, int64_t first, int64_t batch,
                              bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  Carver measure(nullptr);
  carve_tiles(measure, w, batch);
  Workspace memory(measure.used());
  if (!memory.get()) return Status::kNoMemory;
  Carver carver(memory.get());
  QuantizedTiles a = carve_tiles(carver, w, batch);
  a.height = kernel.tile_height(batch, w.bits, two_digits);
  std::memset(a.finite, 1, static_cast<size_t>(batch));
  on_pool(ceil_div(batch, a.height) * a.blocks, 1, batch * w.cols * 8, [&](Range units) {
    kernel.quantize_tiles(io.x + first * w.cols, w.cols, w.bits, w.zeros ? kOwnZeros : zero_of(w), two_digits, a, units.begin,
                          units.end);
  });
  return for_panels(w, batch, [&](const DenseInt& panels, Range rows) {
    if (!kernel.matmul_int(panels, a, two_digits, io.y + first * w.rows + rows.begin, w.rows)) return false;
    finish_rows(io, w.rows, a.finite, first, batch, rows);
    return true;
  });
}

// The sum of each row of x over each group of columns: sums[row][group].
void sum_groups(const DenseInt& w, const Operands& io, float* sums) noexcept {
  for (int64_t m = 0; m < io.batch; ++m) {
    const float* x = io.x + m * w.cols;
    for (int64_t k = 0; k < w.cols; k += w.group) {
      float sum = 0.0f;
      for (const float *at = x + k, *stop = x + std::min(k + w.group, w.cols); at < stop; ++at) sum += *at;
      *sums++ = sum;
    }
  }
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

void group_range(const float* w, int64_t rows, formats::Groups g, float* low, float* high) noexcept {
  on_pool(rows, 1, rows * g.cols * 4, [&](Range r) { formats::group_range(w, g, r.begin, r.end, low, high); });
}

void encode(const float* w, const float* scales, const uint8_t* zeros, const float* minima, int64_t rows,
            formats::Groups g, uint8_t* packed) noexcept {
  on_pool(rows, 1, rows * g.cols * kEncodeBytesPerCode,
          [&](Range r) { formats::encode(w, scales, zeros, minima, g, r.begin, r.end, packed); });
}

void decode(const uint8_t* packed, const float* scales, const uint8_t* zeros, const float* minima, int64_t rows,
            formats::Groups g, uint8_t flip, float* w) noexcept {
  on_pool(rows, 1, rows * g.cols * 8,
          [&](Range r) { formats::decode(packed, scales, zeros, minima, g, flip, r.begin, r.end, w); });
}

void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* panels) noexcept {
  const int64_t count = ceil_div(rows, kPanelRows), bytes = panel_words(cols, bits) * kPanelRows * 4;
  const int64_t cost = rows * row_words(cols, bits) * (unit_of(bits).high ? kEncodeBytesPerCode : 8);
  // Threads that meet in a huge page of new memory each clear one for it, all but one in vain.
  const int64_t align = count * bytes >= 4 * kHugePage ? ceil_div(kHugePage, bytes) : 1;
  on_pool(count, align, cost,
          [&](Range r) { formats::prepack(packed, rows, cols, bits, r.begin, r.end, panels); });
}

void unprepack(const uint8_t* panels, const int64_t* ids, int64_t count, int64_t cols, int bits, uint8_t* packed) noexcept {
  const int64_t bytes = row_words(cols, bits) * 4;
  on_pool(count, 1, count * bytes * (unit_of(bits).high ? 10 : 2), [&](Range r) {
    for (int64_t i = r.begin; i < r.end; ++i) formats::unprepack(panels, ids[i], cols, bits, packed + i * bytes);
  });
}

Status matmul_dense_int(const DenseInt& w, const Operands& io, Activations mode) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  if (w.cols == 0) {  // no group holds anything: kernels expect a column
    std::fill(io.y, io.y + io.batch * w.rows, 0.0f);
    finish_rows(io, w.rows, nullptr, 0, io.batch, {0, w.rows});
    return Status::kOk;
  }
  if (mode == Activations::kFloat32) {
    const KernelTable& kernel = kernels();
    const int64_t groups = groups_of(w);
    Workspace memory(w.minima ? io.batch * groups * 4 : 0);
    if (!memory.get()) return Status::kNoMemory;
    float* sums = w.minima ? reinterpret_cast<float*>(memory.get()) : nullptr;
    if (sums) sum_groups(w, io, sums);
    return for_panels(w, io.batch, [&](const DenseInt& panels, Range rows) {
      kernel.matmul_f32_int(panels, io.x, sums, io.batch, io.y + rows.begin, w.rows);
      finish_rows(io, w.rows, nullptr, 0, io.batch, rows);
      return true;
    });
  }
  for (int64_t first = 0; first < io.batch; first += kBatchChunk) {
    const int64_t batch = std::min(kBatchChunk, io.batch - first);
    const Status status = matmul_dense_int_chunk(w, io, first, batch, mode == Activations::kInt16);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

Status matmul_dense_half(const DenseHalf& w, const Operands& io) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  const KernelTable& kernel = kernels();
  on_pool(w.rows, 1, w.rows * w.cols * 2 * std::max<int64_t>(1, io.batch / 4), [&](Range range) {
    kernel.matmul_f32_half(w, range.begin, range.end, io.x, io.batch, io.y, w.rows);
    finish_rows(io, w.rows, nullptr, 0, io.batch, range);
  });
  return Status::kOk;
}

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
