// Products with integer weights whose codes are, or can become, dense panels.
//
// A Source says where panels come from:
//   DenseInt dense                      shape, group, scales; codes only if they are dense
//   int64_t nbytes() const              stored codes, for the cost of a job
//   int64_t scratch() const             bytes that `panels` needs for kTilePanels panels; 0: none, and all rows come in one go
//   DenseInt panels(rows, scratch)      prepacked rows rows.begin .. rows.end - 1, whole panels
//   bool fused(...) const               multiplies without them, where it can; else false
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "dispatch/table.hpp"
#include "dispatch/work.hpp"
#include "formats/integer.hpp"
#include "status.hpp"

namespace pumice::api {

constexpr int64_t kBatchChunk = 256;  // rows of x whose quantized form is held at a time
constexpr int64_t kTilePanels = 2;    // panels that matmul_int gets at a time

inline QuantizedTiles carve_tiles(Carver& carver, const DenseInt& w, int64_t batch, bool two_digits) noexcept {
  QuantizedTiles a{};
  a.batch = batch;
  a.blocks = ceil_div(w.cols, kBlock);
  a.padded = a.blocks * kBlock;
  a.segment = w.group < kBlock && w.group < w.cols ? w.group : kBlock;
  a.segments = a.padded / a.segment;
  kernels().choose_tiles(a, w.bits, two_digits);
  a.quads = carver.take<uint8_t>((a.matrix ? ceil_div(batch, a.height) * a.height : batch) * a.padded * 2);
  a.starts = carver.take<int32_t>(batch * a.segments);
  if (w.minima) a.sums = carver.take<float>(batch * a.segments);
  a.steps = carver.take<float>(batch * a.blocks);
  a.finite = carver.take<uint8_t>(batch);
  return a;
}

// Bytes of scratch for the panels of `rows` canonical rows.
inline int64_t transposed_bytes(const DenseInt& w, int64_t rows) noexcept {
  return (panel_words(w.cols, w.bits) * 4 + groups_of(w) * (w.minima ? 8 : 5)) * rows + 4 * 64;
}

// Rows first .. first + rows - 1 of canonical weights as panels in `scratch`, so that both forms meet the same kernel and
// give the same bits.
inline DenseInt transposed(const DenseInt& w, int64_t first, int64_t rows, uint8_t* scratch) noexcept {
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

// Runs kernel(panels, rows) over all rows: what a thread gets, or what fits into scratch. It returns false if it has no memory.
template <class Source, class Kernel>
Status for_panels(const Source& source, int64_t batch, const Kernel& kernel) noexcept {
  std::atomic<bool> no_memory{false};
  constexpr int64_t kAlign = kTilePanels * kPanelRows;
  const int64_t bytes = source.scratch();
  on_pool(source.dense.rows, kAlign, source.nbytes() * std::max<int64_t>(1, batch / 4), [&](Range range) {
    if (bytes == 0) {
      if (!kernel(source.panels(range, nullptr), range)) no_memory.store(true);
      return;
    }
    Workspace scratch(bytes);
    if (!scratch.get()) return no_memory.store(true);
    for (Range some{range.begin, 0}; some.begin < range.end; some.begin = some.end) {
      some.end = std::min(some.begin + kAlign, range.end);
      if (!kernel(source.panels(some, scratch.get()), some)) return no_memory.store(true);
    }
  });
  return no_memory.load() ? Status::kNoMemory : Status::kOk;
}

template <class Source>
Status matmul_int_chunk(const Source& source, const Operands& io, int64_t first, int64_t batch, bool two_digits) noexcept {
  const KernelTable& kernel = kernels();
  const DenseInt& w = source.dense;
  Carver measure(nullptr);
  carve_tiles(measure, w, batch, two_digits);
  Workspace memory(measure.used());
  if (!memory.get()) return Status::kNoMemory;
  Carver carver(memory.get());
  const QuantizedTiles a = carve_tiles(carver, w, batch, two_digits);
  std::memset(a.finite, 1, static_cast<size_t>(batch));
  on_pool(ceil_div(batch, a.height) * a.blocks, 1, batch * w.cols * 8, [&](Range units) {
    kernel.quantize_tiles(io.x + first * w.cols, w.cols, w.bits, w.zeros ? kOwnZeros : w.zero, two_digits, a, units.begin,
                          units.end);
  });
  float* y = io.y + first * w.rows;
  const auto finish = [&](Range rows) { finish_rows(io, w.rows, a.finite, first, batch, rows); };
  if (source.fused(a, two_digits, y, finish)) return Status::kOk;
  return for_panels(source, batch, [&](const DenseInt& panels, Range rows) {
    if (!kernel.matmul_int(panels, a, two_digits, y + rows.begin, w.rows)) return false;
    finish(rows);
    return true;
  });
}

// The sum of each row of x over each group of columns: sums[row][group].
inline void sum_groups(const DenseInt& w, const Operands& io, float* sums) noexcept {
  for (int64_t m = 0; m < io.batch; ++m) {
    const float* x = io.x + m * w.cols;
    for (int64_t k = 0; k < w.cols; k += w.group) {
      float sum = 0.0f;
      for (const float *at = x + k, *stop = x + std::min(k + w.group, w.cols); at < stop; ++at) sum += *at;
      *sums++ = sum;
    }
  }
}

template <class Source>
Status matmul_panels(const Source& source, const Operands& io, Activations mode) noexcept {
  const DenseInt& w = source.dense;
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
    return for_panels(source, io.batch, [&](const DenseInt& panels, Range rows) {
      kernel.matmul_f32_int(panels, io.x, sums, io.batch, io.y + rows.begin, w.rows);
      finish_rows(io, w.rows, nullptr, 0, io.batch, rows);
      return true;
    });
  }
  for (int64_t first = 0; first < io.batch; first += kBatchChunk) {
    const int64_t batch = std::min(kBatchChunk, io.batch - first);
    const Status status = matmul_int_chunk(source, io, first, batch, mode == Activations::kInt16);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

}  // namespace pumice::api
