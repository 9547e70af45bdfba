// Tiles of quantized x for a matrix unit: which products take them, and how they come about (views.hpp, QuantizedTiles).
// Whatever is not for them goes to the table of the ISA below.
#pragma once

#include "kernels/quantize_block.inl.hpp"
#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA_BELOW {
extern const KernelTable kTable;
}

namespace pumice::PUMICE_ISA {
namespace {

namespace below = PUMICE_ISA_BELOW;

constexpr int64_t kMatrixBatch = 16;  // from here on a matrix unit is faster, with one digit and one segment a block

void choose_tiles(QuantizedTiles& a, int bits, bool two_digits) {
  // Digits are what it saves; the float sums of each segment it does not.
  a.matrix = a.batch >= kMatrixBatch / (two_digits ? 2 : 1) * (kBlock / a.segment);
  if (!a.matrix) return below::kTable.choose_tiles(a, bits, two_digits);
  a.height = ceil_div(a.batch, ceil_div(a.batch, kMatrixRows));
}

// One block of row m of a tile of `count` rows, of which the first is row `row`.
template <int kApart, bool kTwoDigits>
inline void quantize_matrix_row(const float* x, int64_t cols, int32_t zero, const QuantizedTiles& a, int64_t row, int64_t count,
                                int64_t block, int64_t m) {
  constexpr int kPlanes = kTwoDigits ? 2 : 1;
  const int64_t per_block = kBlock / a.segment;
  int16_t codes[kBlock];
  const float scale = quantize_tile_row<kTwoDigits>(x, cols, a, row + m, block, codes);
  const int64_t plane = a.height * kBlock;
  store_digits<kApart, kPlanes>(codes, a.quads + (row * a.padded + block * plane) * kPlanes + m * kBlock, plane);
  a.steps[row * a.blocks + block * count + m] = scale;
  for (int64_t i = 0; i < per_block; ++i) {
    const int32_t sum = a.segment == kBlock ? sum_codes(codes, kBlock) : sum_codes(codes + i * a.segment, a.segment);
    const int64_t at = row * a.segments + (block * per_block + i) * count + m;
    a.starts[at] = zero == kOwnZeros ? -sum : -zero * sum;
    if (a.sums) a.sums[at] = static_cast<float>(sum) * scale;
  }
}

void quantize_tiles(const float* x, int64_t cols, int bits, int32_t zero, bool two_digits, const QuantizedTiles& a,
                    int64_t begin, int64_t end) {
  if (!a.matrix) return below::kTable.quantize_tiles(x, cols, bits, zero, two_digits, a, begin, end);
  const auto quantize = with_bits(bits, [&](auto constant) {
    constexpr int kApart = 8 / unit_of(decltype(constant){}).low;
    return two_digits ? quantize_matrix_row<kApart, true> : quantize_matrix_row<kApart, false>;
  });
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit / a.blocks * a.height, count = a.batch - row < a.height ? a.batch - row : a.height;
    for (int64_t m = 0; m < count; ++m) quantize(x, cols, zero, a, row, count, unit % a.blocks, m);
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
