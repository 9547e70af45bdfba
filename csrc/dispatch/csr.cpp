// Compressed sparse rows: conversion and products.
#include <algorithm>
#include <atomic>

#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "dispatch/work.hpp"

namespace pumice::api {
namespace {

constexpr int64_t kGroupRows = 256;         // rows of x that are held as tiles at a time
constexpr int64_t kGroupBytes = 64 << 20;   // and the bytes of them, unless one tile is larger
constexpr int64_t kNearBytes = 64 << 10;    // of x in the blocks of columns that kernels take at a time from the widest tiles
constexpr int64_t kRun = 32;                // stored values of a row in them, on average, that make up for taking it in parts
constexpr int64_t kNarrowValues = 4096;     // values of other types that are unpacked at a time for a row of x: of the L1
constexpr int64_t kMostSingles = 2;         // rows of x that go without a tile

// Some rows of x: a tile, or singly.
struct Part {
  int64_t first, batch, lanes;  // lanes 0: singly
  float* floats;
  uint32_t* pairs;
  float* scales;
};

struct Group {
  Part parts[kGroupRows / 16 + 1];
  int count = 0;
  QuantizedRows quantized{};
};

// Blocks of columns that kernels take at a time: all of them unless they would lose sight of x.
int64_t pass_of(const CompressedRows& w, int64_t lanes, bool integer) noexcept {
  const int64_t blocks = ceil_div(w.cols, kBlock);
  return lanes == 16 || (lanes == 32 && !integer) ? blocks : std::min(blocks, kNearBytes / (kBlock * lanes * (integer ? 2 : 4)));
}

// How `batch` rows of x are cut. The widest tiles are for rows with long runs, or for so many tiles that weights stay near.
void cut(const CompressedRows& w, int64_t batch, bool integer, Group& group) noexcept {
  const double values = static_cast<double>(w.indptr[w.rows]) / static_cast<double>(w.rows * ceil_div(w.cols, kBlock));
  const bool wide = integer || batch > kMostColumnLanes || values * static_cast<double>(pass_of(w, kMostColumnLanes, integer)) >= kRun;
  for (int64_t first = 0; first < batch;) {
    const int64_t left = batch - first, lanes = left > 32 && wide ? 64 : left > 16 ? 32 : left > kMostSingles ? 16 : 0;
    const int64_t some = lanes ? std::min(left, lanes) : left;
    group.parts[group.count++] = {first, some, lanes, nullptr, nullptr, nullptr};
    first += some;
  }
}

void carve(Carver& carver, int64_t batch, int64_t cols, bool integer, Group& group) noexcept {
  QuantizedRows& a = group.quantized;
  a.blocks = ceil_div(cols, kBlock);
  a.padded = a.blocks * kBlock;
  if (integer) {
    a.codes = carver.take<int16_t>(batch * a.padded);
    a.scales = carver.take<float>(batch * a.blocks);
    a.finite = carver.take<uint8_t>(batch);
  }
  for (int i = 0; i < group.count; ++i) {
    Part& part = group.parts[i];
    if (integer) {
      part.pairs = carver.take<uint32_t>(a.padded / 2 * part.lanes);
      part.scales = carver.take<float>(a.blocks * part.lanes);
    } else {
      part.floats = carver.take<float>(cols * part.lanes);
    }
  }
}

typedef uint32_t __attribute__((may_alias)) Word;  // two int16

// out[k][lanes] = x[.][k] for columns begin .. end - 1 of `batch` rows; the other lanes are 0.
template <class T, class Out>
void columns_outermost(const T* x, int64_t stride, int64_t batch, int64_t begin, int64_t end, int64_t lanes, Out* out) noexcept {
  constexpr int64_t kRows = 8, kCols = 16;  // read a line of a few rows at a time: rows far apart share sets of the cache
  for (int64_t k0 = begin; k0 < end; k0 += kCols) {
    const int64_t k1 = std::min(k0 + kCols, end);
    for (int64_t m0 = 0; m0 < lanes; m0 += kRows) {
      const int64_t count = std::clamp<int64_t>(batch - m0, 0, kRows);
      for (int64_t k = k0; k < k1; ++k) {
        const T* from = x + m0 * stride + k;
        Out* to = out + k * lanes + m0;
        if (count == kRows) {
          for (int64_t m = 0; m < kRows; ++m) to[m] = from[m * stride];
        } else {
          for (int64_t m = 0; m < kRows; ++m) to[m] = m < count ? from[m * stride] : T(0);
        }
      }
    }
  }
}

// Tiles of the rows of x from `x` on, all parts of a group. Split by columns: rows of a tile share cache lines.
void fill_tiles(const float* x, int64_t cols, bool integer, const Group& group) noexcept {
  const QuantizedRows& a = group.quantized;
  const int64_t batch = group.parts[group.count - 1].first + group.parts[group.count - 1].batch;
  on_pool(a.blocks, 1, batch * cols * 8, [&](Range range) {
    for (int i = 0; i < group.count; ++i) {
      const Part& p = group.parts[i];
      if (p.lanes == 0) continue;
      if (!integer) {
        const int64_t begin = range.begin * kBlock, end = std::min(cols, range.end * kBlock);
        columns_outermost(x + p.first * cols, cols, p.batch, begin, end, p.lanes, p.floats);
        continue;
      }
      const int64_t words = kBlock / 2;
      const Word* codes = reinterpret_cast<const Word*>(a.codes) + p.first * (a.padded / 2);
      columns_outermost(codes, a.padded / 2, p.batch, range.begin * words, range.end * words, p.lanes, p.pairs);
      columns_outermost(a.scales + p.first * a.blocks, a.blocks, p.batch, range.begin, range.end, p.lanes, p.scales);
    }
  });
}

// Rows of w whose values kernels cannot read as they are: in scratch, as float32, or int8 for integer products.
class Readable {
 public:
  Readable(const CompressedRows& w, bool integer) noexcept
      : w_(w), integer_(integer), as_is_(w.values == (integer ? Values::kInt8 : Values::kFloat32)) {}

  // Where a piece of rows ends that begins at `row`: rows enough for a tile, and no more values than stay near a single row.
  int64_t piece_end(int64_t row, int64_t end, bool tiles) const noexcept {
    int64_t stop = std::min(row + kChunkRows, end);
    while (!as_is_ && !tiles && stop > row + 1 && w_.indptr[stop] - w_.indptr[row] > kNarrowValues) stop = row + (stop - row + 1) / 2;
    return stop;
  }
  int64_t scratch_bytes(int64_t row, int64_t stop) const noexcept {
    return as_is_ ? 0 : (w_.indptr[stop] - w_.indptr[row]) * (integer_ ? 1 : 5);  // a byte for codes that become floats
  }
  // w with the values of rows row .. stop - 1 readable.
  CompressedRows view(int64_t row, int64_t stop, uint8_t* scratch) const noexcept {
    CompressedRows view = w_;
    if (as_is_) return view;
    const int64_t first = w_.indptr[row], count = w_.indptr[stop] - first;
    if (integer_) {
      for (int64_t r = row; r < stop; ++r) unpack(r, reinterpret_cast<int8_t*>(scratch) + w_.indptr[r] - first);
    } else if (w_.scales) {
      for (int64_t r = row; r < stop; ++r) {
        decode(r, reinterpret_cast<int8_t*>(scratch + 4 * count), reinterpret_cast<float*>(scratch) + w_.indptr[r] - first);
      }
    } else {
      kernels().widen_half(static_cast<const uint16_t*>(w_.data) + first, count, w_.values == Values::kBfloat16,
                           reinterpret_cast<float*>(scratch));
    }
    // As if the whole array were there, so that value i still is number i.
    view.data = reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(scratch) - static_cast<uintptr_t>(first * (integer_ ? 1 : 4)));
    return view;
  }

 private:
  void unpack(int64_t r, int8_t* codes) const noexcept {
    const int64_t count = w_.indptr[r + 1] - w_.indptr[r];
    formats::unpack_signed(static_cast<const uint8_t*>(w_.data) + w_.starts[r], count, codes);
  }
  // Integers for float32 activations: each code times the scale, as to_dense has it.
  void decode(int64_t r, int8_t* scratch, float* out) const noexcept {
    const int64_t count = w_.indptr[r + 1] - w_.indptr[r];
    const int8_t* codes = static_cast<const int8_t*>(w_.data) + w_.indptr[r];
    if (w_.values == Values::kInt4) {
      unpack(r, scratch);
      codes = scratch;
    }
    const float scale = w_.scales[r];
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(codes[i]) * scale;
  }

  const CompressedRows& w_;
  const bool integer_, as_is_;
};

void multiply_piece(const CompressedRows& w, int64_t begin, int64_t end, const float* x, float* y, bool integer,
                    const Group& group) noexcept {
  const KernelTable& kernel = kernels();
  const QuantizedRows& a = group.quantized;
  for (int i = 0; i < group.count; ++i) {
    const Part& p = group.parts[i];
    if (p.lanes) {
      const ColumnTile tile{p.floats, reinterpret_cast<const int16_t*>(p.pairs), p.scales, p.lanes, p.batch, pass_of(w, p.lanes, integer)};
      (integer ? kernel.matmul_int_csr : kernel.matmul_f32_csr)(w, begin, end, tile, y + p.first * w.rows, w.rows);
      continue;
    }
    for (int64_t m = p.first; m < p.first + p.batch; ++m) {
      if (integer) {
        kernel.matmul_int_csr_row(w, begin, end, a.codes + m * a.padded, a.scales + m * a.blocks, y + m * w.rows);
      } else {
        kernel.matmul_f32_csr_row(w, begin, end, x + m * w.cols, y + m * w.rows);
      }
    }
  }
}

Status multiply(const CompressedRows& w, const Operands& io, int64_t first, int64_t batch, bool integer, bool two_digits) noexcept {
  const float* x = io.x + first * w.cols;
  Group group;
  cut(w, batch, integer, group);
  Carver measure(nullptr);
  carve(measure, batch, w.cols, integer, group);
  Workspace memory(measure.used());
  if (!memory.get()) return Status::kNoMemory;
  Carver carver(memory.get());
  carve(carver, batch, w.cols, integer, group);
  if (integer) {
    on_pool(batch, 1, batch * w.cols * 8, [&](Range range) {
      for (int64_t m = range.begin; m < range.end; ++m) {
        kernels().quantize_row(x + m * w.cols, w.cols, two_digits, group.quantized, m);
      }
    });
  }
  const bool tiles = group.parts[0].lanes != 0;
  if (tiles) fill_tiles(x, w.cols, integer, group);

  const Readable values(w, integer);
  std::atomic<bool> no_memory{false};
  const int64_t bytes = w.indptr[w.rows] * 8 + w.rows * 16;
  on_pool(w.indptr, w.rows, bytes * std::max<int64_t>(1, batch / 4), [&](Range range) {
    int64_t most = 0;
    for (int64_t row = range.begin, stop; row < range.end; row = stop) {
      stop = values.piece_end(row, range.end, tiles);
      most = std::max(most, values.scratch_bytes(row, stop));
    }
    Workspace scratch(most);
    if (!scratch.get()) return no_memory.store(true);
    for (int64_t row = range.begin, stop; row < range.end; row = stop) {
      stop = values.piece_end(row, range.end, tiles);
      multiply_piece(values.view(row, stop, scratch.get()), row, stop, x, io.y + first * w.rows, integer, group);
    }
    finish_rows(io, w.rows, integer ? group.quantized.finite : nullptr, first, batch, range);
  });
  return no_memory.load() ? Status::kNoMemory : Status::kOk;
}

}  // namespace

Status matmul_csr(const CompressedRows& w, const Operands& io, Activations mode) noexcept {
  if (w.rows == 0) return Status::kOk;
  const bool integer = w.scales && mode != Activations::kFloat32;
  const int64_t fitting = kGroupBytes / (4 * std::max<int64_t>(w.cols, 1)) / kMostColumnLanes * kMostColumnLanes;
  const int64_t step = std::clamp(fitting, int64_t{16}, kGroupRows);
  for (int64_t first = 0; first < io.batch; first += step) {
    const Status status = multiply(w, io, first, std::min(step, io.batch - first), integer, mode == Activations::kInt16);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

void count_csr(const StoredMatrix& m, int64_t* counts) noexcept {
  on_pool(m.rows, 1, m.rows * m.cols * 4, [&](Range range) { formats::count_rows(m, range.begin, range.end, counts); });
}

void fill_csr(const StoredMatrix& m, const CompressedRows& w, formats::RowBuffers out) noexcept {
  on_pool(m.rows, 1, m.rows * m.cols * 8, [&](Range range) { formats::fill_rows(m, range.begin, range.end, w, out); });
}

void fill_csr_codes(const formats::FloatRows& m, const int64_t* indptr, const int64_t* starts, formats::RowBuffers out,
                    bool wide_indices, int64_t* counts) noexcept {
  on_pool(m.rows, 1, m.rows * m.g.cols * 8, [&](Range range) {
    formats::fill_csr_codes(m, range.begin, range.end, indptr, starts, out, wide_indices, counts);
  });
  formats::close_gaps(out.indices, wide_indices ? 4 : 2, m.rows, indptr, counts);
  formats::close_gaps(out.data, starts ? 0 : 1, m.rows, starts ? starts : indptr, counts);
}

void decode_csr(const CompressedRows& w, const int64_t* ids, int64_t first, int64_t count, float* out) noexcept {
  on_pool(count, 1, count * w.cols * 4, [&](Range range) { formats::decode_rows(w, ids, first, range.begin, range.end, out); });
}

void count_runs(const CompressedRows& w, uint8_t* runs) noexcept {
  on_pool(w.indptr, w.rows, w.indptr[w.rows] * 8, [&](Range range) { formats::count_runs(w, range.begin, range.end, runs); });
}

}  // namespace pumice::api
