// Weights at the places of a bitmask: both forms, validation, and products.
#include "formats/bitmask.hpp"

#include <algorithm>
#include <atomic>

#include "dispatch/api.hpp"
#include "dispatch/panels.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kBytesPerValue = 16;  // of parallel_for's cost: moving values one by one computes longer than it reads

int64_t stored_bytes(const Bitmask& w) noexcept {
  return w.rows * formats::mask_bytes(w.cols) + w.offsets[w.rows] * value_bytes(w.values);
}

// Codes are expanded in registers for few rows of x, and for more into panels that all of them meet.
struct MaskedSource {
  const MaskedInt& w;
  const DenseInt& dense = w.dense;

  int64_t nbytes() const noexcept { return dense.rows * dense.cols; }
  int64_t scratch() const noexcept { return words_of(dense) * 4 * kTilePanels * kPanelRows; }
  DenseInt panels(Range rows, uint8_t* scratch) const noexcept {
    const int64_t first = rows.begin / kPanelRows;
    DenseInt view = panels_of(dense, rows.begin, rows.end - rows.begin);
    kernels().expand_panels(w, first, ceil_div(view.rows, kPanelRows), scratch);
    view.codes = scratch;
    return view;
  }
  template <class Finish>
  bool fused(const QuantizedTiles& a, bool two_digits, float* y, const Finish& finish) const noexcept {
    if (a.matrix || a.batch > a.height) return false;
    on_pool(dense.rows, kTilePanels * kPanelRows, nbytes(), [&](Range rows) {
      kernels().matmul_int_bitmask(panels_of(w, rows.begin, rows.end - rows.begin), a, two_digits, y + rows.begin, dense.rows);
      finish(rows);
    });
    return true;
  }
};

// Canonical codes: scattered to dense rows, then transposed as those are.
struct ScatteredSource {
  const Bitmask& w;
  const DenseInt& dense;  // canonical

  int64_t nbytes() const noexcept { return dense.rows * dense.cols * 2; }
  int64_t rows_bytes() const noexcept { return words_of(dense) * 4 * kTilePanels * kPanelRows; }
  int64_t scratch() const noexcept { return rows_bytes() + transposed_bytes(dense, kTilePanels * kPanelRows); }
  DenseInt panels(Range rows, uint8_t* scratch) const noexcept {
    formats::scatter(w, rows.begin, rows.end, words_of(dense) * 4, scratch);
    DenseInt some = dense;
    const int64_t entries = rows.begin * groups_of(dense);
    some.codes = scratch;
    some.scales = scales_from(dense, dense.scales, entries);
    return transposed(some, 0, rows.end - rows.begin, scratch + rows_bytes());
  }
  template <class Finish>
  bool fused(const QuantizedTiles&, bool, float*, const Finish&) const noexcept {
    return false;
  }
};

}  // namespace

void find_places(const void* values, Values type, int64_t rows, int64_t cols, int kept, int of, uint8_t* bitmask,
                 int64_t* counts) noexcept {
  on_pool(rows, 1, rows * cols * value_bytes(type) * 4, [&](Range r) {
    formats::find_places(values, type, cols, kept, of, r.begin, r.end, bitmask, counts);
  });
}

void count_places(const uint8_t* bitmask, int64_t rows, int64_t cols, int kept, int of, int64_t* counts) noexcept {
  on_pool(rows, 1, rows * cols / 2, [&](Range r) {
    formats::count_places(bitmask, cols, kept, of, r.begin, r.end, counts);
  });
}

void gather(const void* values, const Bitmask& w, void* data) noexcept {
  on_pool(w.rows, 1, w.offsets[w.rows] * kBytesPerValue,
          [&](Range r) { formats::gather(values, w, r.begin, r.end, data); });
}

void fill_bitmask_codes(const formats::FloatRows& m, const int64_t* offsets, uint8_t* bitmask, uint8_t* data, int64_t* counts) noexcept {
  on_pool(m.rows, 1, m.rows * m.g.cols * 8, [&](Range range) {
    formats::fill_bitmask_codes(m, range.begin, range.end, offsets, bitmask, data, counts);
  });
  formats::close_gaps(data, m.g.bits == 8 ? 1 : 0, m.rows, offsets, counts);
}

void scatter(const Bitmask& w, int64_t begin, int64_t end, int64_t stride, void* out) noexcept {
  const int64_t size = value_bytes(w.values);
  on_pool(end - begin, 1, (end - begin) * stride * size + (w.offsets[end] - w.offsets[begin]) * kBytesPerValue, [&](Range r) {
    formats::scatter(w, begin + r.begin, begin + r.end, stride, static_cast<uint8_t*>(out) + r.begin * stride * size);
  });
}

void panel_masks(const Bitmask& w, uint64_t* masks, int64_t* sizes) noexcept {
  on_pool(ceil_div(w.rows, kPanelRows), 1, w.rows * w.cols, [&](Range r) {
    formats::panel_masks(w, r.begin, r.end, masks, sizes);
  });
}

Status panel_data(const Bitmask& w, const uint64_t* masks, const int64_t* offsets, uint8_t* data) noexcept {
  std::atomic<bool> ok{true};
  on_pool(ceil_div(w.rows, kPanelRows), 1, w.offsets[w.rows] * kBytesPerValue, [&](Range r) {
    if (!formats::panel_data(w, masks, offsets, r.begin, r.end, data)) ok.store(false);
  });
  return ok.load() ? Status::kOk : Status::kNoMemory;
}

void row_masks(const uint64_t* masks, int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* bitmask,
               int64_t* counts) noexcept {
  const int64_t bytes = formats::mask_bytes(cols);
  on_pool(end - begin, 1, (end - begin) * kPanelRows * cols, [&](Range r) {
    formats::row_masks(masks, rows, cols, begin + r.begin, begin + r.end, bitmask + r.begin * kPanelRows * bytes,
                       counts + r.begin * kPanelRows);
  });
}

Status row_data(const MaskedInt& panels, const Bitmask& w, int64_t begin, int64_t end, uint8_t* data) noexcept {
  std::atomic<bool> ok{true};
  on_pool(end - begin, 1, (end - begin) * kPanelRows * w.cols * 4, [&](Range r) {
    Bitmask some = w;
    some.offsets = w.offsets + r.begin * kPanelRows;
    if (!formats::row_data(panels, some, begin + r.begin, begin + r.end, data)) ok.store(false);
  });
  return ok.load() ? Status::kOk : Status::kNoMemory;
}

Status matmul_masked_int(const MaskedInt& w, const Operands& io, Activations mode) noexcept {
  return matmul_panels(MaskedSource{w}, io, mode);
}

Status matmul_bitmask(const Bitmask& w, const DenseInt* dense, const Operands& io, Activations mode) noexcept {
  if (dense) return matmul_panels(ScatteredSource{w, *dense}, io, mode);
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  on_pool(w.rows, 2, stored_bytes(w) * std::max<int64_t>(1, io.batch / 4), [&](Range range) {
    kernels().matmul_f32_bitmask(w, range.begin, range.end, io.x, io.batch, io.y, w.rows);
    finish_rows(io, w.rows, nullptr, 0, io.batch, range);
  });
  return Status::kOk;
}

}  // namespace pumice::api
