#include "formats/stored_codes.hpp"

#include <algorithm>
#include <cstring>

#include "formats/bitmask.hpp"
#include "formats/bsr.hpp"
#include "formats/collect.hpp"

namespace pumice::formats {
namespace {

// Calls use(columns, codes, count) for what some columns at a time of a row store, in order.
template <class Index, class Use>
void for_stored(const FloatRows& m, int64_t row, const Use& use) noexcept {
  Index columns[kCollected + 1];
  float values[kCollected + 1];
  int8_t codes[kCollected];
  for (int64_t k = 0, stop; k < m.g.cols; k = stop) {
    const int64_t group = k / m.g.group;
    stop = std::min({m.g.cols, (group + 1) * m.g.group, k + kCollected});
    const int64_t some = collect(m.w + row * m.g.cols + k, k, stop - k, columns, values);
    signed_codes(values, some, m.scales[row * m.g.groups + group], m.g.bits, codes);
    int64_t n = 0;
    for (int64_t i = 0; i < some; ++i) {
      columns[n] = columns[i];
      codes[n] = codes[i];
      n += codes[i] != 0;
    }
    use(columns, codes, n);
  }
}

template <class Index>
void fill(const FloatRows& m, int64_t begin, int64_t end, const int64_t* indptr, const int64_t* starts, Index* indices,
          uint8_t* data, int64_t* counts) noexcept {
  for (int64_t r = begin; r < end; ++r) {
    int64_t at = 0;
    for_stored<Index>(m, r, [&](const Index* columns, const int8_t* codes, int64_t n) {
      std::copy_n(columns, n, indices + indptr[r] + at);
      if (starts) {
        put_codes(data + starts[r], at, codes, n);
      } else {
        std::memcpy(data + indptr[r] + at, codes, static_cast<size_t>(n));
      }
      at += n;
    });
    counts[r] = at;
  }
}

}  // namespace

void fill_csr_codes(const FloatRows& m, int64_t begin, int64_t end, const int64_t* indptr, const int64_t* starts, RowBuffers out,
                    bool wide_indices, int64_t* counts) noexcept {
  auto* data = static_cast<uint8_t*>(out.data);
  wide_indices ? fill(m, begin, end, indptr, starts, static_cast<uint32_t*>(out.indices), data, counts)
               : fill(m, begin, end, indptr, starts, static_cast<uint16_t*>(out.indices), data, counts);
}

void fill_bitmask_codes(const FloatRows& m, int64_t begin, int64_t end, const int64_t* offsets, uint8_t* bitmask, uint8_t* data,
                        int64_t* counts) noexcept {
  const int64_t bytes = mask_bytes(m.g.cols);
  for (int64_t r = begin; r < end; ++r) {
    uint8_t* bits = bitmask + r * bytes;
    std::memset(bits, 0, static_cast<size_t>(bytes));
    int64_t at = 0;
    for_stored<uint32_t>(m, r, [&](const uint32_t* columns, const int8_t* codes, int64_t n) {
      for (int64_t i = 0; i < n; ++i) bits[columns[i] / 8] = static_cast<uint8_t>(bits[columns[i] / 8] | 1u << (columns[i] % 8));
      if (m.g.bits == 4) {
        put_codes(data + offsets[r], at, codes, n);
      } else {
        std::memcpy(data + offsets[r] + at, codes, static_cast<size_t>(n));
      }
      at += n;
    });
    counts[r] = at;
  }
}

void fill_bsr_codes(const FloatRows& m, const BlockSparse& w, int64_t begin, int64_t end, int8_t* codes, uint32_t* any,
                    int64_t* counts) noexcept {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t top = b * w.blockrows, rows = std::min(w.blockrows, m.rows - top);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0, group = 0; k < m.g.cols; k += m.g.group, ++group) {
        const int64_t some = std::min(m.g.group, m.g.cols - k);
        signed_codes(m.w + (top + r) * m.g.cols + k, some, m.scales[(top + r) * m.g.groups + group], m.g.bits, codes + r * m.g.cols + k);
      }
    }
    counts[b] = fill_block_row({codes, rows, m.g.cols, w.values}, 0, w, w.indptr[b], any);
  }
}

void close_gaps(void* values, int64_t size, int64_t rows, const int64_t* room, const int64_t* counts) noexcept {
  auto* bytes = static_cast<uint8_t*>(values);
  int64_t to = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = size ? room[r] * size : room[r], length = size ? counts[r] * size : (counts[r] + 1) / 2;
    if (to != from) std::memmove(bytes + to, bytes + from, static_cast<size_t>(length));
    to += length;
  }
}

}  // namespace pumice::formats
