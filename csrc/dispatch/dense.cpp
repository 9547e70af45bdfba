// Dense weights: codes and panels, and products.
#include <algorithm>
#include <atomic>

#include "dispatch/api.hpp"
#include "dispatch/cpu.hpp"
#include "dispatch/panels.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kHugePage = 2 << 20;       // bytes, on x86-64 and arm64 as they are mostly set up
constexpr int64_t kFloat8Rows = 32;          // as halves in scratch at a time: 256 KiB with 4096 columns
constexpr int64_t kEncodeBytesPerCode = 40;  // of parallel_for's cost: encoding computes longer than it reads

// Canonical codes are transposed into scratch, so that both forms meet the same kernel and give the same bits.
struct DenseSource {
  const DenseInt& dense;

  int64_t nbytes() const noexcept { return dense.rows * words_of(dense) * 4; }
  int64_t scratch() const noexcept { return dense.prepacked ? 0 : transposed_bytes(dense, kTilePanels * kPanelRows); }
  DenseInt panels(Range rows, uint8_t* scratch) const noexcept {
    const int64_t count = rows.end - rows.begin;
    return scratch ? transposed(dense, rows.begin, count, scratch) : panels_of(dense, rows.begin, count);
  }
  template <class Finish>
  bool fused(const QuantizedTiles&, bool, float*, const Finish&) const noexcept {
    return false;
  }
};

// x by groups: x[begin of a group * batch] is that of the group, (batch, columns of the group).
void by_groups(const float* x, int64_t batch, int64_t cols, int64_t group, float* out) noexcept {
  for (int64_t begin = 0; begin < cols; begin += group) {
    const int64_t width = std::min(group, cols - begin);
    for (int64_t m = 0; m < batch; ++m) out = std::copy_n(x + m * cols + begin, width, out);
  }
}

// y[m][n] (+)= sums[m][n] * scale of row n.
void scale_rows(const float* sums, int64_t batch, int64_t rows, const float* scales, int64_t groups, bool first, float* y,
                int64_t y_stride) noexcept {
  for (int64_t m = 0; m < batch; ++m) {
    for (int64_t n = 0; n < rows; ++n) {
      const float sum = sums[m * rows + n] * formats::kFloat8Unit * scales[n * groups];
      y[m * y_stride + n] = first ? sum : y[m * y_stride + n] + sum;
    }
  }
}

}  // namespace

void group_range(const StoredMatrix& w, int64_t group, float* low, float* high) noexcept {
  on_pool(w.rows, 1, w.rows * w.cols * 4, [&](Range r) { kernels().range_rows(w, group, r.begin, r.end, low, high); });
}

int64_t first_nonfinite(const float* values, int64_t count) noexcept {
  return formats::first_nonfinite(values, count, kernels().all_finite);
}

void encode(const StoredMatrix& w, const Grid& grid, int64_t group, uint8_t* packed, double* noise, double* signal) noexcept {
  on_pool(w.rows, 1, w.rows * w.cols * kEncodeBytesPerCode,
          [&](Range r) { kernels().encode_rows(w, grid, group, r.begin, r.end, packed, noise, signal); });
}

void row_energies(const float* exact, const float* decoded, int64_t rows, int64_t cols, double* noise, double* signal) noexcept {
  on_pool(rows, 1, rows * cols * 8, [&](Range r) {
    for (int64_t row = r.begin; row < r.end; ++row) {
      kernels().row_energy(exact + row * cols, decoded + row * cols, cols, noise + row, signal + row);
    }
  });
}

bool sha256_pieces(const uint8_t* data, int64_t count, int64_t length, uint8_t* digests) noexcept {
  const auto kernel = kernels().sha256_pieces;
  if (!kernel || !cpu_has_sha256()) return false;
  on_pool(count, 4, count * length, [&](Range r) { kernel(data + r.begin * length, r.end - r.begin, length, digests + r.begin * 32); });
  return true;
}

void decode(const uint8_t* packed, const Grid& grid, int64_t group, int64_t rows, int64_t cols, uint8_t flip, float* w) noexcept {
  on_pool(rows, 1, rows * cols * 8, [&](Range r) { formats::decode(packed, grid, group, cols, flip, r.begin, r.end, w); });
}

void unpack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* codes) noexcept {
  on_pool(rows, 1, rows * cols * 4, [&](Range r) { formats::unpack(packed, cols, bits, r.begin, r.end, codes); });
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

int64_t encode_halves(const float* values, bool bfloat16, int64_t count, uint16_t* bits) noexcept {
  std::atomic<int64_t> first{count};
  on_pool(count, 64, count * 8, [&](Range r) {
    const int64_t bad = formats::encode_halves(values, bfloat16, r.begin, r.end, bits);
    int64_t known = first.load();
    while (bad >= 0 && bad < known && !first.compare_exchange_weak(known, bad)) {
    }
  });
  return first.load() == count ? -1 : first.load();
}

void decode_halves(const uint16_t* bits, bool bfloat16, int64_t count, float* values) noexcept {
  on_pool(count, 64, count * 6, [&](Range r) { kernels().widen_half(bits + r.begin, r.end - r.begin, bfloat16, values + r.begin); });
}

Status matmul_dense_int(const DenseInt& w, const Operands& io, Activations mode) noexcept {
  return matmul_panels(DenseSource{w}, io, mode);
}

namespace {

// Some rows of x in pieces. False if that is not for these rows, if not all is finite, or if there is no memory for it; then y
// means nothing.
bool matmul_in_pieces(const DenseHalf& w, const Operands& io) noexcept {
  const KernelTable& kernel = kernels();
  if (!kernel.takes_pieces(w, io.batch)) return false;
  Workspace memory(kernel.piece_words(w.cols, io.batch) * 4);
  if (!memory.get()) return false;
  const PiecesOfX a{reinterpret_cast<uint32_t*>(memory.get()), io.batch, w.cols};
  std::atomic<bool> done{true};
  on_pool(ceil_div(w.cols, kPieceStep), 1, io.batch * w.cols * 8, [&](Range steps) {
    if (!kernel.split_rows(io.x, a, steps.begin, steps.end)) done = false;
  });
  if (!done) return false;
  on_pool(w.rows, 32, w.rows * w.cols * 2 * std::max<int64_t>(1, io.batch / 16), [&](Range range) {
    if (!kernel.matmul_pieces(w, range.begin, range.end, a, io.y, w.rows)) done = false;
    finish_rows(io, w.rows, nullptr, 0, io.batch, range);
  });
  return done;
}

}  // namespace

Status matmul_dense_half(const DenseHalf& w, const Operands& io) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  const KernelTable& kernel = kernels();
  for (int64_t first = 0; first < io.batch; first += kBatchChunk) {
    const Operands some{io.x + first * w.cols, io.y + first * w.rows, io.bias, std::min(kBatchChunk, io.batch - first)};
    if (matmul_in_pieces(w, some)) continue;
    on_pool(w.rows, 1, w.rows * w.cols * 2 * std::max<int64_t>(1, some.batch / 4), [&](Range range) {
      kernel.matmul_f32_half(w, range.begin, range.end, some.x, some.batch, some.y, w.rows);
      finish_rows(some, w.rows, nullptr, 0, some.batch, range);
    });
  }
  return Status::kOk;
}

// Codes become halves a few rows and a group at a time, in scratch that stays in a near cache.
Status matmul_dense_float8(const DenseFloat8& w, const Operands& io) noexcept {
  if (w.rows == 0 || io.batch == 0) return Status::kOk;
  const KernelTable& kernel = kernels();
  const int64_t groups = std::max<int64_t>(1, ceil_div(w.cols, w.group)), widest = std::min(w.group, w.cols);
  Workspace grouped(groups > 1 ? io.batch * w.cols * 4 : 0);
  std::atomic<bool> no_memory{!grouped.get()};
  if (no_memory) return Status::kNoMemory;
  const float* x = groups > 1 ? reinterpret_cast<float*>(grouped.get()) : io.x;
  if (groups > 1) by_groups(io.x, io.batch, w.cols, w.group, reinterpret_cast<float*>(grouped.get()));
  on_pool(w.rows, 1, w.rows * w.cols * 2 * std::max<int64_t>(1, io.batch / 4), [&](Range range) {
    Carver measure(nullptr);
    measure.take<uint16_t>(kFloat8Rows * widest);
    measure.take<float>(io.batch * kFloat8Rows);
    Workspace scratch(measure.used());
    if (!scratch.get()) return no_memory.store(true);
    Carver carver(scratch.get());
    uint16_t* bits = carver.take<uint16_t>(kFloat8Rows * widest);
    float* sums = carver.take<float>(io.batch * kFloat8Rows);
    for (int64_t from = range.begin; from < range.end; from += kFloat8Rows) {
      const int64_t count = std::min(kFloat8Rows, range.end - from);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * w.group, width = std::min(w.group, w.cols - begin);
        for (int64_t n = 0; n < count; ++n) {
          formats::halve_float8(w.codes + (from + n) * w.cols + begin, width, bits + n * width);
        }
        kernel.matmul_f32_half({bits, count, width, false}, 0, count, x + begin * io.batch, io.batch, sums, count);
        scale_rows(sums, io.batch, count, w.scales + from * groups + g, groups, g == 0, io.y + from, w.rows);
      }
    }
    finish_rows(io, w.rows, nullptr, 0, io.batch, range);
  });
  return no_memory ? Status::kNoMemory : Status::kOk;
}

}  // namespace pumice::api
