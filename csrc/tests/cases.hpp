// Inputs of the kernel self-test: weights and activations from integers alone, so that every machine makes the same ones.
//
// Buffers are as large as what they hold and no larger: under ASan, a kernel that reads past an end is caught.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "formats/compressed.hpp"
#include "formats/integer.hpp"
#include "views.hpp"

namespace cases {

using namespace pumice;

// A linear congruential generator with the constants of Knuth's MMIX; its high half.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int below(int n) { return static_cast<int>(uint64_t{bits()} * static_cast<uint64_t>(n) >> 32); }
  // -2 .. 2 in steps of 2^-22: 24 bits, so no conversion rounds
  float value() { return static_cast<float>(static_cast<int>(bits() >> 8) - (1 << 23)) * 0x1p-22f; }

 private:
  uint64_t state_;
};

template <class T>
std::vector<T> filled(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count));
}

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits >> 15 ? -magnitude : magnitude;
}

inline uint16_t half_bits(Random& random) {
  const int exponent = random.below(8) ? 8 + random.below(10) : 0;  // now and then a subnormal
  return static_cast<uint16_t>(random.below(2) << 15 | exponent << 10 | random.below(1024));
}

// x[batch][cols]: blocks of different magnitude, among them tiny ones, whose activations are 0. `wild`: also a row with
// an infinity and one with a NaN.
inline std::vector<float> activations(Random& random, int64_t batch, int64_t cols, bool wild) {
  constexpr float kMagnitudes[] = {0x1p-16f, 0x1p-4f, 1.0f, 0x1p9f, 0x1p-110f};
  auto x = filled<float>(batch * cols);
  for (int64_t m = 0; m < batch; ++m) {
    float magnitude = 1.0f;
    for (int64_t k = 0; k < cols; ++k) {
      if (k % kBlock == 0) magnitude = kMagnitudes[random.below(wild ? 5 : 4)];
      x[m * cols + k] = random.value() * magnitude;
    }
  }
  if (wild && batch > 4) {
    x[3 * cols + random.below(static_cast<int>(cols))] = std::numeric_limits<float>::infinity();
    x[4 * cols + random.below(static_cast<int>(cols))] = std::numeric_limits<float>::quiet_NaN();
  }
  return x;
}

// [row][group] -> [panel][group][16 rows]
template <class T>
std::vector<T> in_panels(const std::vector<T>& values, int64_t rows, int64_t groups) {
  auto panels = filled<T>(ceil_div(rows, kPanelRows) * groups * kPanelRows);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      panels[(r / kPanelRows * groups + g) * kPanelRows + r % kPanelRows] = values[r * groups + g];
    }
  }
  return panels;
}

// What a group has beside its scale.
enum class Offsets { kNone, kZeros, kMinima };

// Dense integer weights in both forms.
struct Dense {
  DenseInt shape;
  int64_t groups;
  std::vector<uint8_t> codes, packed, panels;  // codes: one a byte, as they rest
  std::vector<uint8_t> zeros, panel_zeros;
  std::vector<float> scales, panel_scales, minima, panel_minima;
  std::vector<uint16_t> halves, panel_halves, half_minima, panel_half_minima;

  Dense(Random& random, const DenseInt& like, Offsets offsets) : shape(like), groups(groups_of(like)) {
    const int64_t rows = shape.rows, cols = shape.cols, count = rows * groups;
    shape.zero = offsets == Offsets::kMinima ? 0 : 1 << (shape.bits - 1);
    codes = filled<uint8_t>(rows * cols);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(1 << shape.bits));
    for (int64_t i = 0; i < count; ++i) {
      if (offsets == Offsets::kZeros) zeros.push_back(static_cast<uint8_t>(random.below(1 << shape.bits)));
      if (shape.half_scales) halves.push_back(half_bits(random));
      scales.push_back(shape.half_scales ? static_cast<float>(half_value(halves.back())) : random.value() * 0x1p-6f);
      if (offsets != Offsets::kMinima) continue;
      if (shape.half_scales) half_minima.push_back(half_bits(random));
      minima.push_back(shape.half_scales ? static_cast<float>(half_value(half_minima.back())) : random.value());
    }
    packed = filled<uint8_t>(rows * formats::row_bytes(cols, shape.bits));
    formats::pack(codes.data(), cols, shape.bits, 0, rows, packed.data());
    const int64_t count_panels = ceil_div(rows, kPanelRows);
    panels = filled<uint8_t>(count_panels * panel_words(cols, shape.bits) * kPanelRows * 4);
    formats::prepack(packed.data(), rows, cols, shape.bits, 0, count_panels, panels.data());
    panel_scales = in_panels(scales, rows, groups);
    if (shape.half_scales) panel_halves = in_panels(halves, rows, groups);
    if (!zeros.empty()) panel_zeros = in_panels(zeros, rows, groups);
    if (!minima.empty()) panel_minima = in_panels(minima, rows, groups);
    if (!half_minima.empty()) panel_half_minima = in_panels(half_minima, rows, groups);
  }

  DenseInt view(bool prepacked) const {
    DenseInt w = shape;
    w.prepacked = prepacked;
    w.codes = prepacked ? panels.data() : packed.data();
    w.scales = prepacked ? either(panel_scales, panel_halves) : either(scales, halves);
    w.minima = minima.empty() ? nullptr : prepacked ? either(panel_minima, panel_half_minima) : either(minima, half_minima);
    w.zeros = zeros.empty() ? nullptr : prepacked ? panel_zeros.data() : zeros.data();
    return w;
  }

  double decoded(int64_t r, int64_t k) const {
    const int64_t at = r * groups + k / shape.group;
    const int code = codes[r * shape.cols + k] ^ shape.flip;
    if (!minima.empty()) return double{scales[at]} * code + double{minima[at]};
    return double{scales[at]} * (code - (zeros.empty() ? 1 << (shape.bits - 1) : zeros[at]));
  }
  // |w| as the bound for float activations takes it: the product with the code and that with the minimum round apart.
  double size(int64_t r, int64_t k) const {
    if (minima.empty()) return std::fabs(decoded(r, k));
    const int64_t at = r * groups + k / shape.group;
    return std::fabs(double{scales[at]}) * (codes[r * shape.cols + k] ^ shape.flip) + std::fabs(double{minima[at]});
  }

 private:
  const void* either(const std::vector<float>& floats, const std::vector<uint16_t>& half) const {
    return shape.half_scales ? static_cast<const void*>(half.data()) : floats.data();
  }
};

// Block-sparse weights of `T`, float, half or int8 (of which kBits count), one block of `one_in` stored, and the same matrix without
// its holes.
template <class T, int kBits = 8>
struct Sparse {
  BlockSparse shape;
  std::vector<int64_t> indptr{0};
  std::vector<uint16_t> narrow;
  std::vector<uint32_t> wide;
  std::vector<T> data, whole;
  std::vector<float> scales;

  Sparse(Random& random, const BlockSparse& like, int one_in = 3) : shape(like) {
    const int64_t rows = shape.rows, cols = shape.cols, R = shape.blockrows, C = shape.blockcols;
    whole = filled<T>(rows * cols);
    for (int64_t block_row = 0; block_row < ceil_div(rows, R); ++block_row) {
      for (int64_t block_col = 0; block_col < ceil_div(cols, C); ++block_col) {
        if (block_row % 3 == 1 || random.below(one_in)) continue;  // some rows are empty
        narrow.push_back(static_cast<uint16_t>(block_col));
        wide.push_back(static_cast<uint32_t>(block_col));
        for (int64_t i = 0; i < R * C; ++i) {
          const int64_t r = block_row * R + i / C, k = block_col * C + i % C;
          const bool inside = r < rows && k < cols;
          data.push_back(inside ? value(random) : T(0));
          if (inside) whole[r * cols + k] = data.back();
        }
      }
      indptr.push_back(static_cast<int64_t>(narrow.size()));
    }
    if (sizeof(T) == 1) {
      for (int64_t r = 0; r < rows; ++r) scales.push_back(random.value());
    }
    shape.indptr = indptr.data();
    shape.indices = shape.wide_indices ? static_cast<const void*>(wide.data()) : narrow.data();
    shape.data = data.data();
    shape.scales = scales.empty() ? nullptr : scales.data();
    shape.values = sizeof(T) == 1 ? Values::kInt8 : Values::kFloat32;
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;

 private:
  static T value(Random& random) {
    if (sizeof(T) == 2) return static_cast<T>(half_bits(random));
    return sizeof(T) == 1 ? static_cast<T>(random.below(1 << kBits) - (1 << (kBits - 1))) : static_cast<T>(random.value());
  }
};

// Block-sparse weights of 1 x 1 blocks as compressed rows, with runs and int4 codes of their own.
template <class T>
struct Compressed {
  CompressedRows shape{};
  std::vector<int64_t> starts{0};
  std::vector<uint8_t> packed, runs;

  template <int kBits>
  Compressed(const Sparse<T, kBits>& w, Values values) {
    const BlockSparse& b = w.shape;
    shape = {b.indptr, b.indices, b.data, nullptr, b.scales, nullptr, b.rows, b.cols, values, b.wide_indices};
    for (int64_t r = 0; r < b.rows && values == Values::kInt4; ++r) {
      for (int64_t i = b.indptr[r]; i < b.indptr[r + 1]; ++i) {
        const auto code = static_cast<uint8_t>(static_cast<int>(w.data[i]) + 8);
        (i - b.indptr[r]) % 2 ? void(packed.back() = static_cast<uint8_t>(packed.back() | code << 4)) : packed.push_back(code);
      }
      starts.push_back(static_cast<int64_t>(packed.size()));
    }
    if (values == Values::kInt4) {
      shape.data = packed.data();
      shape.starts = starts.data();
    }
    runs = filled<uint8_t>(b.rows * ceil_div(b.cols, kBlock));
    formats::count_runs(shape, 0, b.rows, runs.data());
  }
  Compressed(const Compressed&) = delete;
  Compressed& operator=(const Compressed&) = delete;

  CompressedRows view(bool with_runs) const {
    CompressedRows w = shape;
    w.runs = with_runs ? runs.data() : nullptr;
    return w;
  }
};

}  // namespace cases
