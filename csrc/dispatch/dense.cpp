// Dense weights: codes and panels, and products.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kBatchChunk = 256;         // rows of x whose quantized form is held at a time
constexpr int64_t kTilePanels = 2;           // panels that matmul_int gets at a time
constexpr int64_t kEncodeBytesPerCode = 40;  // of parallel_for's cost: encoding computes longer than it reads

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

// Runs kernel(view, rows) over all rows of w: what a thread gets, or of canonical weights what fits into scratch.
template <class Kernel>
Status for_panels(const DenseInt& w, int64_t batch, const Kernel& kernel) noexcept {
  std::atomic<bool> no_memory{false};
  const int64_t bytes = w.rows * words_of(w) * 4, align = kTilePanels * kPanelRows;
  on_pool(w.rows, align, bytes * std::max<int64_t>(1, batch / 4), [&](Range range) {
    if (w.prepacked) return kernel(panels_of(w, range.begin, range.end - range.begin), range);
    const int64_t per_group = w.minima ? 8 : 5;
    Workspace scratch((panel_words(w.cols, w.bits) * 4 + groups_of(w) * per_group) * align + 4 * 64);
    if (!scratch.get()) return no_memory.store(true);
    for (Range some{range.begin, 0}; some.begin < range.end; some.begin = some.end) {
      some.end = std::min(some.begin + align, range.end);
      kernel(transposed(w, some.begin, some.end - some.begin, scratch.get()), some);
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
    kernel.matmul_int(panels, a, two_digits, io.y + first * w.rows + rows.begin, w.rows);
    finish_rows(io, w.rows, a.finite, first, batch, rows);
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

}  // namespace pumice::api
