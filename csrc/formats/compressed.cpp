#include "formats/compressed.hpp"

#include <algorithm>
#include <cstring>

#include "formats/collect.hpp"
#include "formats/halves.hpp"

namespace pumice::formats {
namespace {

template <class T>
int64_t count_stored(const T* values, int64_t count) {
  int64_t total = 0;
  for (int64_t k = 0; k < count; k += kCollected) {
    int32_t some = 0;  // narrow, so that compilers vectorise
    const T* v = values + k;
    const int n = static_cast<int>(std::min(kCollected, count - k));
    for (int i = 0; i < n; ++i) some += v[i] != T(0);
    total += some;
  }
  return total;
}

template <class T, class Index>
void fill(const StoredMatrix& m, int64_t begin, int64_t end, const CompressedRows& w, Index* indices, void* data) {
  Index columns[kCollected + 1];
  T values[kCollected + 1];
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(m.values) + r * m.cols;
    int64_t at = w.indptr[r];
    for (int64_t k = 0; k < m.cols && at < w.indptr[r + 1]; k += kCollected) {
      const int64_t n = collect(row + k, k, std::min(kCollected, m.cols - k), columns, values);
      std::copy_n(columns, n, indices + at);
      if constexpr (sizeof(T) == 1) {
        if (w.starts) {
          put_codes(static_cast<uint8_t*>(data) + w.starts[r], at - w.indptr[r], values, n);
          at += n;
          continue;
        }
      }
      std::copy_n(values, n, static_cast<T*>(data) + at);
      at += n;
    }
  }
}

template <class Index>
void decode_row(const CompressedRows& w, const Index* indices, int64_t r, float* out) {
  std::fill_n(out, w.cols, 0.0f);
  const int64_t first = w.indptr[r], last = w.indptr[r + 1];
  const auto put = [&](auto value) {
    for (int64_t i = first; i < last; ++i) out[indices[i]] = value(i);
  };
  switch (w.values) {
    case Values::kFloat32: return put([&](int64_t i) { return static_cast<const float*>(w.data)[i]; });
    case Values::kFloat16: return put([&](int64_t i) { return from_float16(static_cast<const uint16_t*>(w.data)[i]); });
    case Values::kBfloat16: return put([&](int64_t i) { return from_bfloat16(static_cast<const uint16_t*>(w.data)[i]); });
    case Values::kInt8:
      return put([&](int64_t i) { return static_cast<float>(static_cast<const int8_t*>(w.data)[i]) * w.scales[r]; });
    case Values::kInt4: {
      const uint8_t* row = static_cast<const uint8_t*>(w.data) + w.starts[r];
      return put([&](int64_t i) {
        const int code = row[(i - first) / 2] >> ((i - first) % 2 * 4) & 15;
        return static_cast<float>(code - kMiddle) * w.scales[r];
      });
    }
  }
}

template <class Index>
void count_runs_of(const CompressedRows& w, const Index* indices, int64_t begin, int64_t end, uint8_t* runs) {
  const int64_t blocks = ceil_div(w.cols, kBlock);
  for (int64_t r = begin; r < end; ++r) {
    uint8_t* row = runs + r * blocks;
    std::memset(row, 0, static_cast<size_t>(blocks));
    for (int64_t i = w.indptr[r]; i < w.indptr[r + 1]; ++i) ++row[indices[i] / kBlock];
  }
}

}  // namespace

void count_rows(const StoredMatrix& m, int64_t begin, int64_t end, int64_t* counts) noexcept {
  for (int64_t r = begin; r < end; ++r) {
    counts[r] = m.kind == Values::kFloat32 ? count_stored(static_cast<const float*>(m.values) + r * m.cols, m.cols)
                : m.kind == Values::kFloat16 || m.kind == Values::kBfloat16
                    ? count_stored(static_cast<const uint16_t*>(m.values) + r * m.cols, m.cols)
                    : count_stored(static_cast<const int8_t*>(m.values) + r * m.cols, m.cols);
  }
}

void fill_rows(const StoredMatrix& m, int64_t begin, int64_t end, const CompressedRows& w, RowBuffers out) noexcept {
  const auto with = [&](auto* indices) {
    switch (m.kind) {
      case Values::kFloat32: return fill<float>(m, begin, end, w, indices, out.data);
      case Values::kFloat16:
      case Values::kBfloat16: return fill<uint16_t>(m, begin, end, w, indices, out.data);
      case Values::kInt8:
      case Values::kInt4: return fill<int8_t>(m, begin, end, w, indices, out.data);
    }
  };
  w.wide_indices ? with(static_cast<uint32_t*>(out.indices)) : with(static_cast<uint16_t*>(out.indices));
}

void decode_rows(const CompressedRows& w, const int64_t* ids, int64_t first, int64_t begin, int64_t end, float* out) noexcept {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t r = ids ? ids[i] : first + i;
    w.wide_indices ? decode_row(w, static_cast<const uint32_t*>(w.indices), r, out + i * w.cols)
                   : decode_row(w, static_cast<const uint16_t*>(w.indices), r, out + i * w.cols);
  }
}

void count_runs(const CompressedRows& w, int64_t begin, int64_t end, uint8_t* runs) noexcept {
  w.wide_indices ? count_runs_of(w, static_cast<const uint32_t*>(w.indices), begin, end, runs)
                 : count_runs_of(w, static_cast<const uint16_t*>(w.indices), begin, end, runs);
}

void unpack_signed(const uint8_t* packed, int64_t count, int8_t* codes) noexcept {
  for (int64_t i = 0; i < count / 2; ++i) {
    codes[2 * i] = static_cast<int8_t>((packed[i] & 15) - kMiddle);
    codes[2 * i + 1] = static_cast<int8_t>((packed[i] >> 4) - kMiddle);
  }
  if (count % 2) codes[count - 1] = static_cast<int8_t>((packed[count / 2] & 15) - kMiddle);
}

}  // namespace pumice::formats
