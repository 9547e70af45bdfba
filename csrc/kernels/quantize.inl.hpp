// Activations: float32 rows -> int16 codes with one scale per block of 128 columns, then the order that the dense
// kernels read. The arithmetic is fixed to the bit (docs/formats.md, "Activations").
#pragma once

#include "kernels/quantize_block.inl.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

void quantize_row(const float* x, int64_t cols, bool two_digits, QuantizedRows a, int64_t row) {
  const float limit = two_digits ? kTwoDigitLimit : kOneDigitLimit;
  int16_t* codes = a.codes + row * a.padded;
  float* scales = a.scales + row * a.blocks;
  bool finite = true;
  for (int64_t block = 0; block < a.blocks && finite; ++block) {
    const int64_t k = block * kBlock;
    finite = quantize_columns(x + k, cols - k, limit, codes + k, scales + block);
  }
  a.finite[row] = finite;
  if (finite) return;
  for (int64_t i = 0; i < a.padded; ++i) codes[i] = 0;
  for (int64_t block = 0; block < a.blocks; ++block) scales[block] = 0.0f;
}

// A quad is the 4 columns of a step (views.hpp, Unit), P apart, where P codes of a low plane share a byte. Each has kPlanes
// planes of 4 bytes, `step` bytes apart.
template <int kPlanes>
inline void store_quad(uint8_t* out, int64_t step, const uint32_t (&planes)[kPlanes]) {
  for (int plane = 0; plane < kPlanes; ++plane) std::memcpy(out + plane * step, &planes[plane], 4);
}

// Of 8 bytes, those at even places.
inline uint32_t even_bytes(uint64_t v) {
  v &= 0x00FF00FF00FF00FFu;
  v = (v | v >> 8) & 0x0000FFFF0000FFFFu;
  return static_cast<uint32_t>(v | v >> 16);
}

// Bytes part, part + kApart, ... of a run of 4 * kApart.
template <int kApart>
inline uint32_t apart(const uint8_t* run, int part) {
  uint32_t quad = 0;
  if constexpr (kApart == 1) {
    std::memcpy(&quad, run, 4);
  } else if constexpr (kApart == 2) {
    uint64_t both;
    std::memcpy(&both, run, 8);
    quad = even_bytes(both >> (8 * part));
  } else {
    for (int i = 0; i < 4; ++i) quad |= static_cast<uint32_t>(run[part + kApart * i]) << (8 * i);
  }
  return quad;
}

// Byte digits: a = 128 * hi + lo, one plane each; or the code itself in one plane. They are raised by kBias.
template <int kApart, int kPlanes, int kBias = 0>
inline void spread_digits(const int16_t* a, uint8_t* out, int64_t step) {
  uint8_t digits[kPlanes][kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    const int hi = kPlanes == 2 ? (a[i] + 64) >> 7 : a[i];
    digits[0][i] = static_cast<uint8_t>(hi + kBias);
    if constexpr (kPlanes == 2) digits[1][i] = static_cast<uint8_t>(a[i] - 128 * hi + kBias);
  }
  for (int64_t k = 0; k < kBlock; k += 4 * kApart) {
    for (int part = 0; part < kApart; ++part, out += kPlanes * step) {
      uint32_t planes[kPlanes];
      for (int plane = 0; plane < kPlanes; ++plane) planes[plane] = apart<kApart>(digits[plane] + k, part);
      store_quad<kPlanes>(out, step, planes);
    }
  }
}

// int16 pairs: columns 0 and 2 of a quad in one plane, 1 and 3 in the other.
template <int kApart>
inline void spread_pairs(const int16_t* a, uint8_t* out, int64_t step) {
  for (int64_t k = 0; k < kBlock; k += 4 * kApart) {
    for (int part = 0; part < kApart; ++part, out += 2 * step) {
      const int16_t* from = a + k + part;
      const int16_t pairs[4] = {from[0], from[2 * kApart], from[kApart], from[3 * kApart]};
      uint32_t planes[2];
      std::memcpy(planes, pairs, 8);
      store_quad<2>(out, step, planes);
    }
  }
}

// One block of `count` rows of x, the first at row `row` of the tiles.
template <int kBits, bool kTwoDigits>
inline void quantize_tile(const float* x, int64_t cols, int32_t zero, const QuantizedTiles& a, int64_t row, int64_t count,
                          int64_t block) {
  using D = Dot<kBits, kTwoDigits>;
  constexpr int kPlanes = D::kPlanes, kApart = 8 / unit_of(kBits).low;
  const int64_t k = block * kBlock, per_block = kBlock / a.segment;
  for (int64_t m = 0; m < count; ++m) {
    int16_t codes[kBlock];
    const float scale = quantize_tile_row<kTwoDigits>(x, cols, a, row + m, block, codes);
    uint8_t* quads = a.quads + (row * a.padded + k * count) * kPlanes + m * 4;
    if constexpr (D::kByteDigits) {
      spread_digits<kApart, kPlanes>(codes, quads, count * 4);
    } else {
      spread_pairs<kApart>(codes, quads, count * 4);
    }
    a.steps[row * a.blocks + block * count + m] = scale;
    for (int64_t i = 0; i < per_block; ++i) {
      const int32_t sum = a.segment == kBlock ? sum_codes(codes, kBlock) : sum_codes(codes + i * a.segment, a.segment);
      const int64_t at = row * a.segments + (block * per_block + i) * count + m;
      a.starts[at] = zero == kOwnZeros ? -sum : (kOffset<kBits> - zero) * sum;
      if (a.sums) a.sums[at] = static_cast<float>(sum) * scale;
    }
  }
}

void quantize_tiles(const float* x, int64_t cols, int bits, int32_t zero, bool two_digits, const QuantizedTiles& a,
                    int64_t begin, int64_t end) {
  const auto quantize = with_bits(bits, [&](auto constant) {
    constexpr int kBits = decltype(constant){};
    return two_digits ? quantize_tile<kBits, true> : quantize_tile<kBits, false>;
  });
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / a.blocks * a.height, count = a.batch - row < a.height ? a.batch - row : a.height;
    quantize(x, cols, zero, a, row, count, unit % a.blocks);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
