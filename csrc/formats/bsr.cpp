#include "formats/bsr.hpp"

#include <algorithm>
#include <cstring>

#include "formats/halves.hpp"

namespace pumice::formats {
namespace {

// any[k] = whether column k holds something in some rows, of which a value is nothing if no bit of `mask` is set.
template <class T>
void find_any(const T* values, int64_t rows, int64_t cols, T mask, uint32_t* any) noexcept {
  std::fill(any, any + cols, 0u);
  for (int64_t r = 0; r < rows; ++r, values += cols) {
    for (int64_t k = 0; k < cols; ++k) any[k] |= static_cast<uint32_t>(values[k] & mask);
  }
}

// Calls found(block column) for the blocks of a block row that hold something.
template <class Found>
void for_found(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t block_row, uint32_t* any, Found found) noexcept {
  const int64_t top = block_row * blockrows, rows = std::min(blockrows, m.rows - top);
  const auto* at = static_cast<const uint8_t*>(m.values) + top * m.cols * value_bytes(m.kind);
  switch (value_bytes(m.kind)) {
    case 4: find_any(reinterpret_cast<const uint32_t*>(at), rows, m.cols, 0x7fffffffu, any); break;
    case 2: find_any(reinterpret_cast<const uint16_t*>(at), rows, m.cols, uint16_t{0x7fff}, any); break;
    default: find_any(at, rows, m.cols, uint8_t{0xff}, any);
  }
  for (int64_t k = 0, column = 0; k < m.cols; k += blockcols, ++column) {
    uint32_t some = 0;
    for (int64_t c = k, stop = std::min(k + blockcols, m.cols); c < stop; ++c) some |= any[c];
    if (some) found(column);
  }
}

// out[count]: values from number `at` of the data on.
void decode_run(const BlockSparse& w, int64_t at, int64_t count, float scale, float* out) noexcept {
  switch (w.values) {
    case Values::kFloat32:
      std::memcpy(out, static_cast<const float*>(w.data) + at, static_cast<size_t>(count) * 4);
      break;
    case Values::kFloat16:
      for (int64_t i = 0; i < count; ++i) out[i] = from_float16(static_cast<const uint16_t*>(w.data)[at + i]);
      break;
    case Values::kBfloat16:
      for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(static_cast<const uint16_t*>(w.data)[at + i]);
      break;
    case Values::kInt8:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(static_cast<const int8_t*>(w.data)[at + i]) * scale;
      break;
    case Values::kInt4:
      for (int64_t i = at; i < at + count; ++i) {
        const int code = static_cast<const uint8_t*>(w.data)[i / 2] >> (i % 2 * 4) & 15;
        *out++ = static_cast<float>(code - 8) * scale;
      }
  }
}

}  // namespace

void count_blocks(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t begin, int64_t end, uint32_t* any,
                  int64_t* counts) noexcept {
  for (int64_t b = begin; b < end; ++b) {
    int64_t count = 0;
    for_found(m, blockrows, blockcols, b, any, [&](int64_t) { ++count; });
    counts[b] = count;
  }
}

int64_t fill_block_row(const StoredMatrix& m, int64_t block_row, const BlockSparse& w, int64_t first, uint32_t* any) noexcept {
  const int64_t R = w.blockrows, C = w.blockcols, item = value_bytes(m.kind);
  auto* data = static_cast<uint8_t*>(const_cast<void*>(w.data));
  int64_t i = first;
  const int64_t rows = std::min(R, m.rows - block_row * R);
  const auto* top = static_cast<const uint8_t*>(m.values) + block_row * R * m.cols * item;
  for_found(m, R, C, block_row, any, [&](int64_t column) {
    void* indices = const_cast<void*>(w.indices);
    w.wide_indices ? void(static_cast<uint32_t*>(indices)[i] = static_cast<uint32_t>(column))
                   : void(static_cast<uint16_t*>(indices)[i] = static_cast<uint16_t>(column));
    const int64_t k = column * C, cols = std::min(C, m.cols - k);
    if (w.values == Values::kInt4) {
      uint8_t* to = data + i * R * C / 2;
      std::memset(to, 0x88, static_cast<size_t>(R * C / 2));  // zeros
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t at = r * C + c;
          const auto code = static_cast<uint8_t>(top[r * m.cols + k + c] & 15);  // of code + 8, the XOR with 8
          to[at / 2] = static_cast<uint8_t>(to[at / 2] ^ (code << (at % 2 * 4)));
        }
      }
    } else {
      uint8_t* to = data + i * R * C * item;
      if (rows < R || cols < C) std::memset(to, 0, static_cast<size_t>(R * C * item));
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(to + r * C * item, top + (r * m.cols + k) * item, static_cast<size_t>(cols * item));
      }
    }
    ++i;
  });
  return i - first;
}

void fill_blocks(const StoredMatrix& m, const BlockSparse& w, int64_t begin, int64_t end, uint32_t* any) noexcept {
  for (int64_t b = begin; b < end; ++b) fill_block_row(m, b, w, w.indptr[b], any);
}

void decode_block_rows(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t begin, int64_t end, float* out) noexcept {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = ids ? ids[n] : first + n, b = row / w.blockrows;
    const float scale = w.scales ? w.scales[row] : 1.0f;
    float* to = out + n * w.cols;
    std::fill(to, to + w.cols, 0.0f);
    for (int64_t i = w.indptr[b]; i < w.indptr[b + 1]; ++i) {
      const int64_t column = w.wide_indices ? int64_t{static_cast<const uint32_t*>(w.indices)[i]}
                                            : int64_t{static_cast<const uint16_t*>(w.indices)[i]};
      const int64_t k = column * w.blockcols, count = std::min(w.blockcols, w.cols - k);
      decode_run(w, (i * w.blockrows + row % w.blockrows) * w.blockcols, count, scale, to + k);
    }
  }
}

}  // namespace pumice::formats
