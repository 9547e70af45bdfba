// matmul_f32_bsr: y = x w^T for block-sparse weights of float32, float16 or bfloat16. Only stored blocks are touched.
//
// A tile of x, kept with columns outermost, meets each stored weight as whole vectors: the sums of some rows of w times two
// vectors of x stay in registers along a block row. A single row of x meets blocks in the order in which they rest: lanes are
// the rows of a block, or its columns. Accurate to gamma_n |w||x|.
#pragma once

#include "kernels/store_rows.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int64_t kAheadOfBlocks = 4096;  // bytes of prefetch

inline int64_t index_at(const BlockSparse& w, int64_t i) {
  return w.wide_indices ? static_cast<const uint32_t*>(w.indices)[i] : static_cast<const uint16_t*>(w.indices)[i];
}

// The types that values rest in.
struct Float32 {
  using Type = float;
  static F32 load(const float* p) { return load_f32(p); }
};
struct Float16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_half(p); }
};
struct Bfloat16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_bfloat16(p); }
};

template <class Body>
inline void with_floats(Values values, const Body& body) {
  values == Values::kFloat32 ? body(Float32{}) : values == Values::kFloat16 ? body(Float16{}) : body(Bfloat16{});
}

template <class T>
inline void widen(const typename T::Type* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_f32(to + i, T::load(from + i));
  typename T::Type some[kLanes] = {};
  float wide[kLanes];
  for (int64_t j = i; j < count; ++j) some[j - i] = from[j];
  store_f32(wide, T::load(some));
  for (int64_t j = i; j < count; ++j) to[j] = wide[j - i];
}

// Calls run(data, first, last) for runs of the blocks first .. last - 1, whose values are float32 at `data`: all of them in
// place, or some at a time in `scratch`.
template <class T, class Run>
inline void for_wide_runs(const BlockSparse& w, int64_t first, int64_t last, float* scratch, const Run& run) {
  const int64_t size = w.blockrows * w.blockcols;
  if constexpr (sizeof(typename T::Type) == 4) {
    run(static_cast<const float*>(w.data) + first * size, first, last);
  } else {
    const int64_t most = kBlockScratch / size > 1 ? kBlockScratch / size : 1;
    for (int64_t i = first; i < last; i += most) {
      const int64_t stop = i + most < last ? i + most : last;
      widen<T>(static_cast<const typename T::Type*>(w.data) + i * size, (stop - i) * size, scratch);
      run(scratch, i, stop);
    }
  }
}

// A tile of x.

// kSecond: to the second cache. Where a weight meets a single vector of x, the first cache has no misses to spare for what comes later.
template <bool kSecond>
ALWAYS_INLINE inline void fetch(const float* data, int64_t count) {
  if (kLanes == 1) return;  // GCC warns of a loop that does nothing
  const auto* ahead = reinterpret_cast<const uint8_t*>(data) + kAheadOfBlocks;
  for (const uint8_t* stop = ahead + count * 4; ahead < stop; ahead += 64) kSecond ? prefetch_far(ahead) : prefetch(ahead);
}

// sums[kRows][lanes] += kRows rows of the blocks first .. last - 1, of which `data` is the first one's first row, times
// kVectors vectors of x. kCols: columns of a block if known when compiling, else 0.
template <int kRows, int kVectors, int kCols>
inline void f32_bsr_part(const BlockSparse& w, const float* data, int64_t first, int64_t last, const float* x, int64_t lanes,
                         float* sums) {
  constexpr int kSums = kRows * kVectors, kChains = kSums >= 8 ? 1 : kSums >= 4 ? 2 : 4;
  const int64_t cols = kCols ? kCols : w.blockcols, size = w.blockrows * cols;
  F32 s[kChains][kRows][kVectors];
  unroll<kRows>([&](auto r) {
    unroll<kVectors>([&](auto v) {
      s[0][r][v] = load_f32(sums + r * lanes + v * kLanes);
      unroll<kChains, 1>([&](auto chain) { s[chain][r][v] = zero_f32(); });
    });
  });
  const auto meet = [&](const float* weights, const float* at, auto chain) ALWAYS_INLINE {
    F32 a[kVectors];
    unroll<kVectors>([&](auto v) ALWAYS_INLINE { a[v] = load_f32(at + v * kLanes); });
    unroll<kRows>([&](auto r) ALWAYS_INLINE {
      const F32 weight = set_f32(weights[r * cols]);
      unroll<kVectors>([&](auto v) ALWAYS_INLINE { s[chain][r][v] = muladd(weight, a[v], s[chain][r][v]); });
    });
  };
  if constexpr (kCols == 1) {
    int64_t i = first;
    for (; i + kChains <= last; i += kChains, data += kChains * size) {
      fetch<kVectors == 1>(data, kRows * kChains);
      unroll<kChains>([&](auto chain) ALWAYS_INLINE { meet(data + chain * size, x + index_at(w, i + chain) * lanes, chain); });
    }
    for (; i < last; ++i, data += size) meet(data, x + index_at(w, i) * lanes, Index<0>{});
  } else {
    for (int64_t i = first; i < last; ++i, data += size) {
      const float* at = x + index_at(w, i) * cols * lanes;
      fetch<kVectors == 1>(data, kRows * cols);
      int64_t c = 0;
      for (; c + kChains <= cols; c += kChains) {
        unroll<kChains>([&](auto chain) ALWAYS_INLINE { meet(data + c + chain, at + (c + chain) * lanes, chain); });
      }
      if constexpr (kCols == 0 || kCols % kChains != 0) {
        for (; c < cols; ++c) meet(data + c, at + c * lanes, Index<0>{});
      }
    }
  }
  unroll<kRows>([&](auto r) {
    unroll<kVectors>([&](auto v) {
      F32 sum = s[0][r][v];
      unroll<kChains, 1>([&](auto chain) { sum = add(sum, s[chain][r][v]); });
      store_f32(sums + r * lanes + v * kLanes, sum);
    });
  });
}

// All rows of the blocks, kRows and then fewer at a time.
template <int kRows, int kVectors, int kCols>
inline void f32_bsr_rows(const BlockSparse& w, const float* data, int64_t first, int64_t last, const float* x, int64_t lanes,
                         int64_t row, float* sums) {
  for (; row + kRows <= w.blockrows; row += kRows) {
    f32_bsr_part<kRows, kVectors, kCols>(w, data + row * (kCols ? kCols : w.blockcols), first, last, x, lanes,
                                         sums + row * lanes);
  }
  if constexpr (kRows > 1) f32_bsr_rows<kRows / 2, kVectors, kCols>(w, data, first, last, x, lanes, row, sums);
}

template <class T, int kVectors, int kCols>
inline void f32_bsr_tile(const BlockSparse& w, int64_t begin, int64_t end, const ColumnsOfX& x, float* scratch, float* y,
                         int64_t y_stride) {
  constexpr int kRows = kRegisters / 2 / kVectors;
  float* sums = scratch + block_scratch(w);
  const int64_t step = ceil_div(kLanes, w.blockrows);  // block rows whose sums are stored together
  for (int64_t b = begin; b < end; b += step) {
    const int64_t stop = b + step < end ? b + step : end;
    for (int64_t i = 0; i < (stop - b) * w.blockrows * x.lanes; ++i) sums[i] = 0.0f;
    for (int64_t j = b; j < stop; ++j) {
      float* to = sums + (j - b) * w.blockrows * x.lanes;
      for_wide_runs<T>(w, w.indptr[j], w.indptr[j + 1], scratch, [&](const float* data, int64_t first, int64_t last) {
        for (int64_t m = 0; m < x.batch; m += kVectors * kLanes) {
          f32_bsr_rows<kRows, kVectors, kCols>(w, data, first, last, x.floats + m, x.lanes, 0, to + m);
        }
      });
    }
    const int64_t row = b * w.blockrows, rows = stop * w.blockrows < w.rows ? stop * w.blockrows - row : w.rows - row;
    store_rows(sums, x.lanes, rows, x.batch, y + row, y_stride);
  }
}

// A single row of x.

// Columns of a block that divide a vector: lanes are (row, column) as they rest. `size` values of a block from `data` on that
// are kVectors vectors; sums[kVectors * kLanes].
template <class T, int kCols, int kVectors>
inline void f32_bsr_lanes(const BlockSparse& w, const typename T::Type* data, int64_t first, int64_t last, const float* x,
                          float* sums) {
  constexpr int kChains = kVectors >= 4 ? 2 : 4;
  const int64_t size = w.blockrows * kCols;
  F32 s[kChains][kVectors];
  unroll<kChains>([&](auto chain) { unroll<kVectors>([&](auto v) { s[chain][v] = zero_f32(); }); });
  const auto meet = [&](int64_t i, auto chain) ALWAYS_INLINE {
    const F32 a = repeat_f32<kCols>(x + index_at(w, i) * kCols);
    const typename T::Type* weights = data + (i - first) * size;
    unroll<kVectors>([&](auto v) ALWAYS_INLINE {
      prefetch_far(reinterpret_cast<const uint8_t*>(weights + v * kLanes) + kAheadOfBlocks);
      s[chain][v] = muladd(T::load(weights + v * kLanes), a, s[chain][v]);
    });
  };
  int64_t i = first;
  for (; i + kChains <= last; i += kChains) unroll<kChains>([&](auto chain) ALWAYS_INLINE { meet(i + chain, chain); });
  for (; i < last; ++i) meet(i, Index<0>{});
  unroll<kVectors>([&](auto v) {
    F32 sum = s[0][v];
    unroll<kChains, 1>([&](auto chain) { sum = add(sum, s[chain][v]); });
    store_f32(sums + v * kLanes, sum);
  });
}

// Blocks that are half a vector or a quarter, a column each: kBlocks of them at a time.
template <class T, int kBlocks>
inline void f32_bsr_column(const BlockSparse& w, const typename T::Type* data, int64_t first, int64_t last, const float* x,
                           float* sums) {
  constexpr int kChains = 4, kHeight = kLanes / kBlocks;
  F32 s[kChains];
  unroll<kChains>([&](auto chain) { s[chain] = zero_f32(); });
  const auto meet = [&](int64_t i, const typename T::Type* weights, auto chain) ALWAYS_INLINE {
    float a[4] = {};  // at least 4: what spread_f32 reads
    unroll<kBlocks>([&](auto block) ALWAYS_INLINE { a[block] = x[index_at(w, i + block)]; });
    s[chain] = muladd(T::load(weights), spread_f32<kBlocks>(a), s[chain]);
  };
  int64_t i = first;
  for (; i + kChains * kBlocks <= last; i += kChains * kBlocks) {
    prefetch_far(reinterpret_cast<const uint8_t*>(data + (i - first) * kHeight) + kAheadOfBlocks);
    unroll<kChains>([&](auto chain) ALWAYS_INLINE {
      meet(i + chain * kBlocks, data + (i - first + chain * kBlocks) * kHeight, chain);
    });
  }
  for (; i + kBlocks <= last; i += kBlocks) meet(i, data + (i - first) * kHeight, Index<0>{});
  float all[kLanes];
  store_f32(all, add(add(s[0], s[1]), add(s[2], s[3])));
  for (; i < last; ++i) {
    typename T::Type some[kLanes] = {};
    float wide[kLanes];
    for (int r = 0; r < kHeight; ++r) some[r] = data[(i - first) * kHeight + r];
    store_f32(wide, T::load(some));
    for (int r = 0; r < kHeight; ++r) all[r] += wide[r] * x[index_at(w, i)];
  }
  for (int r = 0; r < kHeight; ++r) {
    float sum = all[r];
    for (int block = 1; block < kBlocks; ++block) sum += all[block * kHeight + r];
    sums[r] = sum;
  }
}

// Columns of a block that are whole vectors: lanes are columns. kRows rows of the blocks from `data` on; y[kRows].
template <class T, int kRows, int kCols>
inline void f32_bsr_dots(const BlockSparse& w, const typename T::Type* data, int64_t first, int64_t last, const float* x,
                         float* y) {
  const int64_t cols = kCols ? kCols : w.blockcols, size = w.blockrows * cols;
  constexpr int kChains = kRows >= 8 ? 1 : kRows >= 4 ? 2 : 4;
  F32 s[kChains][kRows];
  unroll<kChains>([&](auto chain) { unroll<kRows>([&](auto r) { s[chain][r] = zero_f32(); }); });
  const auto meet = [&](const typename T::Type* weights, const float* at, auto chain) ALWAYS_INLINE {
    const F32 a = load_f32(at);
    unroll<kRows>([&](auto r) ALWAYS_INLINE {
      prefetch_far(reinterpret_cast<const uint8_t*>(weights + r * cols) + kAheadOfBlocks);
      s[chain][r] = muladd(T::load(weights + r * cols), a, s[chain][r]);
    });
  };
  for (int64_t i = first; i < last; ++i, data += size) {
    const float* at = x + index_at(w, i) * cols;
    int64_t c = 0;
    for (; c + kChains * kLanes <= cols; c += kChains * kLanes) {
      unroll<kChains>([&](auto chain) ALWAYS_INLINE { meet(data + c + chain * kLanes, at + c + chain * kLanes, chain); });
    }
    for (; c < cols; c += kLanes) meet(data + c, at + c, Index<0>{});
  }
  unroll<kRows>([&](auto r) {
    F32 sum = s[0][r];
    unroll<kChains, 1>([&](auto chain) { sum = add(sum, s[chain][r]); });
    y[r] = sum_lanes(sum);
  });
}

// Any other block: y[w.blockrows] += the blocks, float32 at `data`.
inline void f32_bsr_plain(const BlockSparse& w, const float* data, int64_t first, int64_t last, const float* x, float* y) {
  const int64_t cols = w.blockcols, size = w.blockrows * cols;
  for (int64_t r = 0; r < w.blockrows; ++r, data += cols) {
    float sums[4] = {};
    const float* v = data;
    for (int64_t i = first; i < last; ++i, v += size) {
      const float* at = x + index_at(w, i) * cols;
      int64_t c = 0;
      for (; c + 4 <= cols; c += 4) {
        for (int chain = 0; chain < 4; ++chain) sums[chain] += v[c + chain] * at[c + chain];
      }
      for (; c < cols; ++c) sums[(i + c) % 4] += v[c] * at[c];
    }
    y[r] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

template <class T, int kCols, int kVectors>
inline int64_t f32_bsr_lane_parts(const BlockSparse& w, const typename T::Type* data, int64_t first, int64_t last,
                                  const float* x, int64_t part, float* y) {
  constexpr int kPart = kVectors * kLanes;
  for (; part + kPart <= w.blockrows * kCols; part += kPart) {
    float sums[kPart];
    f32_bsr_lanes<T, kCols, kVectors>(w, data + part, first, last, x, sums);
    for (int r = 0; r < kPart / kCols; ++r) {
      float sum = sums[r * kCols];
      for (int c = 1; c < kCols; ++c) sum += sums[r * kCols + c];
      y[part / kCols + r] = sum;
    }
  }
  if constexpr (kVectors > 1) return f32_bsr_lane_parts<T, kCols, kVectors / 2>(w, data, first, last, x, part, y);
  return part;
}

template <class T, int kRows, int kCols>
inline void f32_bsr_dot_parts(const BlockSparse& w, const typename T::Type* data, int64_t first, int64_t last, const float* x,
                              int64_t row, float* y) {
  for (; row + kRows <= w.blockrows; row += kRows) {
    f32_bsr_dots<T, kRows, kCols>(w, data + row * (kCols ? kCols : w.blockcols), first, last, x, y + row);
  }
  if constexpr (kRows > 1) f32_bsr_dot_parts<T, kRows / 2, kCols>(w, data, first, last, x, row, y);
}

// y[w.blockrows] of one block row.
template <class T>
inline void f32_bsr_row(const BlockSparse& w, int64_t first, int64_t last, const float* x, float* scratch, float* y) {
  const int64_t cols = w.blockcols, size = w.blockrows * cols;
  const auto* data = static_cast<const typename T::Type*>(w.data) + first * size;
  if (cols == kLanes) return f32_bsr_dot_parts<T, kRegisters / 2, kLanes>(w, data, first, last, x, 0, y);
  if (cols % kLanes == 0) return f32_bsr_dot_parts<T, kRegisters / 2, 0>(w, data, first, last, x, 0, y);
  if constexpr (kLanes > 4) {
    if (cols == 4 && size % kLanes == 0) return void(f32_bsr_lane_parts<T, 4, 4>(w, data, first, last, x, 0, y));
  }
  if constexpr (kLanes > 1) {
    if (cols == 1 && size % kLanes == 0) return void(f32_bsr_lane_parts<T, 1, 2>(w, data, first, last, x, 0, y));
  }
  if constexpr (kLanes > 4) {
    if (cols == 1 && size == kLanes / 2) return f32_bsr_column<T, 2>(w, data, first, last, x, y);
  }
  if constexpr (kLanes > 8) {
    if (cols == 1 && size == kLanes / 4) return f32_bsr_column<T, 4>(w, data, first, last, x, y);
  }
  for (int64_t r = 0; r < w.blockrows; ++r) y[r] = 0.0f;
  for_wide_runs<T>(w, first, last, scratch, [&](const float* wide, int64_t from, int64_t to) {
    f32_bsr_plain(w, wide, from, to, x, y);
  });
}

void matmul_f32_bsr(const BlockSparse& w, int64_t begin, int64_t end, const ColumnsOfX& x, float* scratch, float* y,
                    int64_t y_stride) {
  with_floats(w.values, [&](auto type) {
    using T = decltype(type);
    if (x.lanes == 1) {
      float* ragged = scratch + block_scratch(w);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t row = b * w.blockrows, rows = w.rows - row < w.blockrows ? w.rows - row : w.blockrows;
        float* to = rows < w.blockrows ? ragged : y + row;
        f32_bsr_row<T>(w, w.indptr[b], w.indptr[b + 1], x.floats, scratch, to);
        for (int64_t r = 0; to == ragged && r < rows; ++r) y[row + r] = ragged[r];
      }
      return;
    }
    const auto tile = [&](auto vectors) {
      constexpr int kVectors = decltype(vectors){};
      w.blockcols == 1   ? f32_bsr_tile<T, kVectors, 1>(w, begin, end, x, scratch, y, y_stride)
      : w.blockcols == 4 ? f32_bsr_tile<T, kVectors, 4>(w, begin, end, x, scratch, y, y_stride)
      : w.blockcols == 16 ? f32_bsr_tile<T, kVectors, 16>(w, begin, end, x, scratch, y, y_stride)
                          : f32_bsr_tile<T, kVectors, 0>(w, begin, end, x, scratch, y, y_stride);
    };
    x.lanes == kLanes || kLanes == 1 ? tile(Index<1>{}) : tile(Index<2>{});
  });
}

// out[col][lanes] of the columns begin .. end-1, of which those from `cols` on are 0, as are lanes from `batch` on.
void pack_columns(const float* x, int64_t cols, int64_t batch, int64_t lanes, int64_t begin, int64_t end, float* out) {
  int64_t k = begin;
  for (; k + kLanes <= end && k + kLanes <= cols; k += kLanes) {
    for (int64_t m = 0; m < lanes; m += kLanes) {
      F32 v[kLanes];
      unroll<kLanes>([&](auto i) ALWAYS_INLINE { v[i] = m + i < batch ? load_f32(x + (m + i) * cols + k) : zero_f32(); });
      transpose(v);
      unroll<kLanes>([&](auto i) ALWAYS_INLINE { store_f32(out + (k + i) * lanes + m, v[i]); });
    }
  }
  for (; k < end; ++k) {
    for (int64_t m = 0; m < lanes; ++m) out[k * lanes + m] = m < batch && k < cols ? x[m * cols + k] : 0.0f;
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
