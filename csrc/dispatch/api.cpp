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

// y = bias where there are no columns, or nothing is stored.
void finish_rows(const Operands& io, int64_t rows, const uint8_t* finite, int64_t first, int64_t count) noexcept {
  for (int64_t m = first; m < first + count; ++m) {
    float* y = io.y + m * rows;
    if (finite && !finite[m - first]) {
      std::fill(y, y + rows, std::numeric_limits<float>::quiet_NaN());
    } else if (io.bias) {
      for (int64_t n = 0; n < rows; ++n) y[n] += io.bias[n];
    }
  }
}

QuantizedRows carve(Carver& carver, int64_t batch, int64_t cols, int64_t segment, bool spread) noexcept {
  QuantizedRows a{};
  a.blocks = ceil_div(cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.segments = a.padded / segment;
  a.codes = carver.take<int16_t>(batch * a.padded);
  a.scales = carver.take<float>(batch * a.blocks);
  a.finite = carver.take<uint8_t>(batch);
  if (spread) {
    a.quads = carver.take<uint8_t>(batch * a.padded * 2);
    a.starts = carver.take<int32_t>(batch * a.segments);
    a.steps = carver.take<float>(batch * a.blocks);
  }
  return a;
}

// A view of up to `panels` panels of `w` from row `first` on. The canonical form is transposed into `scratch` first, so
// that both forms meet the same kernel and give the same bits.
DenseInt tile_of(const DenseInt& w, int64_t first, int64_t panels, uint8_t* scratch) noexcept {
  const int64_t groups = groups_of(w), size = w.half_scales ? 2 : 4, panel = first / kPanelRows;
  DenseInt view = w;
  view.rows = std::min(panels * kPanelRows, w.rows - first);
  view.prepacked = true;
  const int64_t words = words_of(view);
  if (w.prepacked) {
    view.codes = w.codes + panel * words * kPanelRows * 4;
    view.scales = static_cast<const uint8_t*>(w.scales) + panel * groups * kPanelRows * size;
    if (w.zeros) view.zeros = w.zeros + panel * groups * kPanelRows;
    return view;
  }
  const int64_t per_group = panels * groups * kPanelRows;
  Carver carver(scratch);
  uint8_t* codes = carver.take<uint8_t>(panels * words * kPanelRows * 4);
  uint8_t* scales = carver.take<uint8_t>(per_group * size);
  uint8_t* zeros = carver.take<uint8_t>(per_group);
  formats::prepack(w.codes + first * words_of(w) * 4, view.rows, w.cols, w.bits, 0, ceil_div(view.rows, kPanelRows), codes);
  std::memset(scales, 0, static_cast<size_t>(per_group * size));
  std::memset(zeros, 0, static_cast<size_t>(per_group));
  for (int64_t r = 0; r < view.rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = (first + r) * groups + g;
      const int64_t to = (r / kPanelRows * groups + g) * kPanelRows + r % kPanelRows;
      std::memcpy(scales + to * size, static_cast<const uint8_t*>(w.scales) + from * size, static_cast<size_t>(size));
      if (w.zeros) zeros[to] = w.zeros[from];
    }
  }
  view.codes = codes;
  view.scales = scales;
  if (w.zeros) view.zeros = zeros;
  return view;
}

int64_t tile_scratch_bytes(const DenseInt& w, int64_t panels) noexcept {
  if (w.prepacked) return 0;
  return (panel_words(w.cols, w.bits) * 4 + groups_of(w) * 5) * kPanelRows * panels + 4 * 64;
}

// Runs `kernel(view, first row)` over all rows of w, `panels` panels at a time.
template <class Kernel>
Status for_tiles(const DenseInt& w, int64_t batch, int64_t panels, const Kernel& kernel) noexcept {
  std::atomic<bool> no_memory{false};
  const int64_t bytes = w.rows * words_of(w) * 4, step = panels * kPanelRows;
  on_pool(w.rows, step, bytes * std::max<int64_t>(1, batch / 4), [&](Range range) {
    Workspace scratch(tile_scratch_bytes(w, panels));
    if (!scratch.get()) {
      no_memory.store(true);
      return;
    }
    for (int64_t row = range.begin; row < range.end; row += step) {
      kernel(tile_of(w, row, panels, scratch.get()), row);
    }
  });
  return no_memory.load() ? Status::kNoMemory : Status::kOk;
}

Status matmul_dense_int_chunk(const DenseInt& w, const Operands& io, int64_t first, int64_t batch,
                              bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  const int64_t segment = w.group < kBlock && w.group < w.cols ? w.group : kBlock;
  Carver measure(nullptr);
  carve(measure, batch, w.cols, segment, true);
  Workspace memory(measure.used());
  if (!memory.get()) return Status::kNoMemory;
  Carver carver(memory.get());
  QuantizedRows a = carve(carver, batch, w.cols, segment, true);
  a.height = kernel.tile_height(batch, w.bits, two_digits);
  on_pool(batch, 1, batch * w.cols * 8, [&](Range range) {
    for (int64_t m = range.begin; m < range.end; ++m) {
      kernel.quantize_row(io.x + (first + m) * w.cols, w.cols, two_digits, a, m);
      kernel.spread_row(a, batch, m, w.bits, segment, w.zeros ? kOwnZeros : 1 << (w.bits - 1), two_digits);
    }
  });
  const Status status = for_tiles(w, batch, kTilePanels, [&](const DenseInt& tile, int64_t row) {
    kernel.matmul_int(tile, a, batch, segment, two_digits, io.y + first * w.rows + row, w.rows);
  });
  finish_rows(io, w.rows, a.finite, first, batch);
  return status;
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
    a = carve(carver, batch, w.cols, kBlock, false);
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
  finish_rows(io, w.rows, integer ? a.finite : nullptr, first, batch);
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

void encode(const float* w, const float* scales, const uint8_t* zeros, int64_t rows, formats::Groups g,
            uint8_t* packed) noexcept {
  on_pool(rows, 1, rows * g.cols * kEncodeBytesPerCode,
          [&](Range r) { formats::encode(w, scales, zeros, g, r.begin, r.end, packed); });
}

void decode(const uint8_t* packed, const float* scales, const uint8_t* zeros, int64_t rows, formats::Groups g,
            uint8_t flip, float* w) noexcept {
  on_pool(rows, 1, rows * g.cols * 8,
          [&](Range r) { formats::decode(packed, scales, zeros, g, flip, r.begin, r.end, w); });
}

void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* panels) noexcept {
  const int64_t cost = rows * row_words(cols, bits) * (unit_of(bits).high ? kEncodeBytesPerCode : 8);
  on_pool(ceil_div(rows, kPanelRows), 1, cost,
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
    finish_rows(io, w.rows, nullptr, 0, io.batch);
    return Status::kOk;
  }
  if (mode == Activations::kFloat32) {
    const KernelTable& kernel = kernels();
    const Status status = for_tiles(w, io.batch, 1, [&](const DenseInt& panel, int64_t row) {
      kernel.matmul_f32_int(panel, io.x, io.batch, io.y + row, w.rows);
    });
    finish_rows(io, w.rows, nullptr, 0, io.batch);
    return status;
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
  });
  finish_rows(io, w.rows, nullptr, 0, io.batch);
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
