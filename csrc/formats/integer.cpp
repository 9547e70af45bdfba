#include "formats/integer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "formats/packing.hpp"
#include "views.hpp"

namespace pumice::formats {
namespace {

constexpr int64_t kFiniteStrip = 4096;
constexpr int64_t kStrip = 256;  // codes that go through a scratch of bytes at a time; a multiple of 8

uint32_t load_word(const uint8_t* p) noexcept {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// 4 words of 4 rows, `stride` bytes apart -> word by word, kPanelRows * 4 bytes apart.
inline void transpose_words(const uint8_t* in, int64_t stride, uint8_t* out) noexcept {
  using Words = uint32_t __attribute__((vector_size(16)));
  Words a, b, c, d;
  std::memcpy(&a, in, 16);
  std::memcpy(&b, in + stride, 16);
  std::memcpy(&c, in + 2 * stride, 16);
  std::memcpy(&d, in + 3 * stride, 16);
  const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Words words[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(out + i * kPanelRows * 4, &words[i], 16);
}

// Column of step `step`, byte `i`, of a unit.
constexpr int column_of(const Unit& unit, int step, int i) {
  const int per_byte = 8 / unit.low;
  return step / per_byte * 4 * per_byte + step % per_byte + per_byte * i;
}

// A row of codes to and from the planes of one row of a panel, whose words are kPanelRows * 4 bytes apart.
void split_planes(const uint8_t* row, int64_t cols, int bits, uint8_t* out) noexcept {
  const Unit unit = unit_of(bits);
  const int steps = unit.cols / 4, per_word = 32 / unit.low;
  uint8_t codes[kStrip];
  for (int64_t k = 0; k < cols; k += kStrip) {
    const int64_t count = std::min(kStrip, cols - k);
    unpack_strip(row + k * bits / 8, count, bits, codes);
    if (count < kStrip) std::memset(codes + count, 0, static_cast<size_t>(kStrip - count));
    for (int64_t at = 0; at < count; at += unit.cols) {
      uint32_t words[5] = {};
      for (int c = 0; c < unit.cols; ++c) {
        const uint32_t low = codes[at + c] & ((1u << unit.low) - 1);
        words[c / per_word] |= low << (c % per_word * unit.low);
      }
      for (int step = 0; step < steps; ++step) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t high = codes[at + column_of(unit, step, i)] >> unit.low;
          words[unit.low_words] |= high << (8 * i + unit.high * step);
        }
      }
      for (int word = 0; word < unit.words; ++word, out += kPanelRows * 4) std::memcpy(out, &words[word], 4);
    }
  }
}

void join_planes(const uint8_t* in, int64_t cols, int bits, uint8_t* row) noexcept {
  const Unit unit = unit_of(bits);
  const int steps = unit.cols / 4, per_word = 32 / unit.low;
  uint8_t codes[kStrip];
  for (int64_t k = 0; k < cols; k += kStrip) {
    const int64_t count = std::min(kStrip, cols - k);
    for (int64_t at = 0; at < count; at += unit.cols, in += unit.words * kPanelRows * 4) {
      for (int c = 0; c < unit.cols; ++c) {
        const uint32_t word = load_word(in + c / per_word * kPanelRows * 4);
        codes[at + c] = static_cast<uint8_t>(word >> (c % per_word * unit.low) & ((1u << unit.low) - 1));
      }
      const uint32_t high = load_word(in + unit.low_words * kPanelRows * 4);
      for (int step = 0; step < steps; ++step) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t bit = high >> (8 * i + unit.high * step) & ((1u << unit.high) - 1);
          codes[at + column_of(unit, step, i)] |= static_cast<uint8_t>(bit << unit.low);
        }
      }
    }
    pack_strip(codes, count, bits, row + k * bits / 8);
  }
  clear_padding(row, cols, bits);
}

}  // namespace

int64_t first_nonfinite(const float* values, int64_t count, AllFinite all_finite) noexcept {
  for (int64_t i = 0; i < count; i += kFiniteStrip) {
    const int64_t stop = std::min(count, i + kFiniteStrip);
    if (all_finite(values + i, stop - i)) continue;
    for (int64_t j = i; j < stop; ++j) {
      if (!std::isfinite(values[j])) return j;
    }
  }
  return -1;
}

void signed_codes(const float* values, int64_t count, float scale, int bits, int8_t* codes) noexcept {
  const int middle = 1 << (bits - 1);
  const auto zero = static_cast<float>(middle), top = static_cast<float>(2 * middle - 1);
  if (scale == 0.0f) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(static_cast<int>(nearest_code(values[i], scale, zero, -0.0f, top)) - middle);
  }
}

void decode(const uint8_t* packed, const Grid& grid, int64_t group, int64_t cols, uint8_t flip, int64_t begin, int64_t end,
            float* w) noexcept {
  const int bits = grid.bits, middle = grid.minima ? 0 : 1 << (bits - 1);
  const int64_t bytes = row_bytes(cols, bits);
  uint8_t codes[kStrip];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < cols; k += kStrip) {
      const int64_t stop = std::min(cols, k + kStrip);
      unpack_strip(packed + row * bytes + k * bits / 8, stop - k, bits, codes);
      for (int64_t i = k; i < stop;) {
        const int64_t n = i / group, run = std::min(stop, (n + 1) * group), at = row * grid.groups + n;
        const float scale = grid.scales[at];
        const int zero = grid.zeros ? grid.zeros[at] : middle;
        // v + -0.0 is v to the bit, for -0.0 too.
        const float minimum = grid.minima ? grid.minima[at] : -0.0f;
        for (; i < run; ++i) {
          w[row * cols + i] = scale * static_cast<float>((codes[i - k] ^ flip) - zero) + minimum;
        }
      }
    }
  }
}

int64_t pack(const uint8_t* codes, int64_t cols, int bits, int64_t begin, int64_t end, uint8_t* packed) noexcept {
  const int64_t bytes = row_bytes(cols, bits);
  for (int64_t i = begin * cols; i < end * cols; ++i) {
    if (codes[i] >> bits) return i;
  }
  for (int64_t row = begin; row < end; ++row) {
    clear_padding(packed + row * bytes, cols, bits);
    pack_strip(codes + row * cols, cols, bits, packed + row * bytes);
  }
  return -1;
}

void unpack(const uint8_t* packed, int64_t cols, int bits, int64_t begin, int64_t end, uint8_t* codes) noexcept {
  const int64_t bytes = row_bytes(cols, bits);
  for (int64_t row = begin; row < end; ++row) unpack_strip(packed + row * bytes, cols, bits, codes + row * cols);
}

void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, int64_t begin, int64_t end,
             uint8_t* panels) noexcept {
  const Unit unit = unit_of(bits);
  const int64_t words = row_words(cols, bits), size = panel_words(cols, bits) * kPanelRows * 4;
  for (int64_t panel = begin; panel < end; ++panel) {
    uint8_t* out = panels + panel * size;
    const int64_t used = std::min(kPanelRows, rows - panel * kPanelRows);
    if (used < kPanelRows) std::memset(out, 0, static_cast<size_t>(size));
    const uint8_t* in = packed + panel * kPanelRows * words * 4;
    if (unit.high) {
      for (int64_t r = 0; r < used; ++r) split_planes(in + r * words * 4, cols, bits, out + r * 4);
      continue;
    }
    int64_t word = 0;
    if (used == kPanelRows) {
      for (; word + 4 <= words; word += 4) {
        // The rows of a panel lie one after the other: memory is read ahead in one stream, however often rows change here.
        const uint8_t* ahead = in + kPanelRows * (words + word) * 4;
        for (int line = 0; line < 4; ++line) __builtin_prefetch(ahead + line * 64);
        for (int64_t r = 0; r < kPanelRows; r += 4) transpose_words(in + (r * words + word) * 4, words * 4, out + (word * kPanelRows + r) * 4);
      }
    }
    for (; word < words; ++word) {
      for (int64_t r = 0; r < used; ++r) {
        std::memcpy(out + (word * kPanelRows + r) * 4, in + (r * words + word) * 4, 4);
      }
    }
  }
}

void unprepack(const uint8_t* panels, int64_t row, int64_t cols, int bits, uint8_t* packed) noexcept {
  const int64_t words = row_words(cols, bits);
  const uint8_t* in = panels + row / kPanelRows * panel_words(cols, bits) * kPanelRows * 4 + row % kPanelRows * 4;
  if (unit_of(bits).high) {
    join_planes(in, cols, bits, packed);
    return;
  }
  for (int64_t word = 0; word < words; ++word) std::memcpy(packed + word * 4, in + word * kPanelRows * 4, 4);
}

}  // namespace pumice::formats
