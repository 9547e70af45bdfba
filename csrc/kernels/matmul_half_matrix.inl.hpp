// matmul_f32_half for large batches of bfloat16 weights by a matrix unit, which multiplies pairs of bfloat16 and sums in float32.
//
// x is split into three bfloat16 pieces whose sum it is, so all products are exact, and y is as accurate as by float32: gamma_n
// |w||x|, but that numbers below 2^-126, which the unit takes for 0, are missing. Tiles of w are rows as they rest, copied side by
// side, with zeros for what is missing; sums of 32 rows of w and of x are in the registers for 512 columns, and between them in
// scratch, so that the pieces of 512 columns meet many rows of w while they are near.
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernels/table.hpp"
#include "kernels/unroll.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kPieces = 3;
constexpr int64_t kTileBytes = kMatrixRows * kMatrixRowBytes, kTileWords = kTileBytes / 4;
constexpr int64_t kStepsNear = 16;              // steps whose pieces stay near
constexpr int64_t kRowsNear = 512;              // of w, whose sums stay near
constexpr int64_t kPairOfTiles = 2;             // of w, and of x
constexpr int64_t kPairRowsOfW = kPairOfTiles * kMatrixRows;
constexpr int64_t kPieceBatch = 16, kPieceColumns = 64;  // from here on; for few columns its bound would not hold

inline __m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

inline int64_t steps_of(int64_t cols) { return ceil_div(cols, kPieceStep); }
inline int64_t tiles_of(int64_t batch) { return ceil_div(batch, kPairRowsOfW) * kPairOfTiles; }

bool takes_pieces(const DenseHalf& w, int64_t batch) { return w.bfloat16 && batch >= kPieceBatch && w.cols >= kPieceColumns; }
int64_t piece_words(int64_t cols, int64_t batch) { return steps_of(cols) * tiles_of(batch) * kPieces * kTileWords; }

// The pieces of a tile at a step.
inline uint32_t* pieces_at(const PiecesOfX& a, int64_t tile, int64_t step) {
  const int64_t first = step / kStepsNear * kStepsNear, all = steps_of(a.cols);
  const int64_t steps = all - first < kStepsNear ? all - first : kStepsNear;
  return a.words + (first * tiles_of(a.batch) + tile * steps + step - first) * kPieces * kTileWords;
}

// x or its first `count` floats, then zeros.
inline __m512 load_some(const float* x, int64_t count) {
  return count >= 16 ? _mm512_loadu_ps(x) : count <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), x);
}

// A step of a tile of `rows` rows. Returns whether all is finite.
inline bool split_tile(const float* x, int64_t cols, int64_t width, int64_t rows, uint32_t* out) {
  alignas(64) uint32_t by_rows[kPieces][kMatrixRows][16] = {};
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u)), exponent = _mm512_set1_epi32(0x7f800000);
  const __m512i odd = _mm512_add_epi16(_mm512_set1_epi32(0x00030001),
      _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(0x00040004)));  // upper halves: 1, 3, 5, ...
  __mmask16 wild = 0;
  for (int64_t m = 0; m < rows; ++m, x += cols) {
    __m512 a = load_some(x, width), b = load_some(x + 16, width - 16);
    unroll<kPieces>([&](auto piece) {
      const __m512i bits_a = _mm512_castps_si512(a), bits_b = _mm512_castps_si512(b);
      if (piece == 0) {
        wild |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits_a, exponent), exponent);
        wild |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits_b, exponent), exponent);
      }
      _mm512_store_si512(by_rows[piece][m], _mm512_permutex2var_epi16(bits_a, odd, bits_b));
      a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(bits_a, high)));  // exact
      b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_si512(bits_b, high)));
    });
  }
  const __m512i row = _mm512_slli_epi32(lane_numbers(), 4);
  for (const auto& piece : by_rows) {
    for (int pair = 0; pair < 16; ++pair, out += kMatrixRows) {
      _mm512_storeu_si512(out, _mm512_i32gather_epi32(row, &piece[0][pair], 4));
    }
  }
  return wild == 0;
}

bool split_rows(const float* x, const PiecesOfX& a, int64_t begin, int64_t end) {
  bool finite = true;
  for (int64_t step = begin; step < end; ++step) {
    for (int64_t tile = 0; tile < tiles_of(a.batch); ++tile) {
      const int64_t row = tile * kMatrixRows, rows = a.batch - row < kMatrixRows ? a.batch - row : kMatrixRows;
      finite &= split_tile(x + row * a.cols + step * kPieceStep, a.cols, a.cols - step * kPieceStep, rows, pieces_at(a, tile, step));
    }
  }
  return finite;
}

// Tiles of w[rows][cols], up to kPairRowsOfW rows and kStepsNear steps: [step][tile][row][32 columns]. Returns whether all is finite.
inline bool copy_tiles(const uint16_t* w, int64_t stride, int64_t rows, int64_t cols, uint16_t* out) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  const int64_t steps = steps_of(cols);
  __mmask32 wild = 0;
  for (int64_t n = 0; n < kPairRowsOfW; ++n) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t left = n < rows ? cols - step * kPieceStep : 0;
      const __mmask32 there = left >= kPieceStep ? ~0u : (1u << left) - 1;
      const __m512i some = _mm512_maskz_loadu_epi16(there, w + n * stride + step * kPieceStep);
      wild |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(some, exponent), exponent);
      _mm512_store_si512(out + (step * kPairRowsOfW + n) * kPieceStep, some);
    }
  }
  return wild == 0;
}

// sums[tile of w][tile of x][row of w][row of x] of two tiles each += w x^T over some steps.
inline void multiply_steps(const uint16_t* w, const uint32_t* x0, const uint32_t* x1, int64_t steps, float* sums, bool first) {
  unroll<4>([&](auto i) ALWAYS_INLINE {
    if (first) {
      zero_tile<i>();
    } else {
      load_tile<i>(sums + i * kTileWords, 64);
    }
  });
  for (int64_t step = 0; step < steps; ++step, w += kPairRowsOfW * kPieceStep) {
    load_tile<4>(w, 64);
    load_tile<5>(w + kMatrixRows * kPieceStep, 64);
    unroll<kPieces>([&](auto) ALWAYS_INLINE {
      load_tile<6>(x0, 64);
      load_tile<7>(x1, 64);
      dot_pairs<0, 4, 6>();
      dot_pairs<1, 4, 7>();
      dot_pairs<2, 5, 6>();
      dot_pairs<3, 5, 7>();
      x0 += kTileWords;
      x1 += kTileWords;
    });
  }
  unroll<4>([&](auto i) ALWAYS_INLINE { store_tile<i>(sums + i * kTileWords, 64); });
}

// y[row of x][rows of w] from the sums of 32 of both.
inline void store_sums(const float* sums, int64_t rows, int64_t batch, float* y, int64_t y_stride) {
  const __m512i row = _mm512_slli_epi32(lane_numbers(), 4);
  for (int64_t m = 0; m < batch; ++m, y += y_stride) {
    for (int64_t n = 0; n < rows; n += kMatrixRows) {
      const float* from = sums + (n / kMatrixRows * kPairOfTiles + m / kMatrixRows) * kTileWords + m % kMatrixRows;
      const __mmask16 there = rows - n >= kMatrixRows ? 0xffff : static_cast<__mmask16>((1u << (rows - n)) - 1);
      _mm512_mask_storeu_ps(y + n, there, _mm512_i32gather_ps(row, from, 4));
    }
  }
}

bool matmul_pieces(const DenseHalf& w, int64_t begin, int64_t end, const PiecesOfX& a, float* y, int64_t y_stride) {
  constexpr int64_t kCopyBytes = kStepsNear * kPairOfTiles * kTileBytes, kSquare = 4 * kTileWords;
  const int64_t pairs = tiles_of(a.batch) / kPairOfTiles, most = end - begin < kRowsNear ? end - begin : kRowsNear;
  const int64_t sums_of_rows = pairs * kSquare, blocks = ceil_div(most, kPairRowsOfW);
  uint8_t* scratch = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(kCopyBytes + blocks * sums_of_rows * 4)));
  if (!scratch) return false;
  uint16_t* const copy = reinterpret_cast<uint16_t*>(scratch);
  float* const sums = reinterpret_cast<float*>(scratch + kCopyBytes);
  bool finite = true;
  configure_tiles(whole_tiles());
  for (int64_t from = begin; from < end; from += kRowsNear) {
    const int64_t to = end - from < kRowsNear ? end : from + kRowsNear;
    for (int64_t k = 0; k < a.cols; k += kStepsNear * kPieceStep) {
      const int64_t cols = a.cols - k < kStepsNear * kPieceStep ? a.cols - k : kStepsNear * kPieceStep, steps = steps_of(cols);
      for (int64_t n = from; n < to; n += kPairRowsOfW) {
        finite &= copy_tiles(w.bits + n * w.cols + k, w.cols, to - n < kPairRowsOfW ? to - n : kPairRowsOfW, cols, copy);
        settle();
        float* at = sums + (n - from) / kPairRowsOfW * sums_of_rows;
        for (int64_t pair = 0; pair < pairs; ++pair, at += kSquare) {
          const uint32_t* x = pieces_at(a, pair * kPairOfTiles, k / kPieceStep);
          multiply_steps(copy, x, x + steps * kPieces * kTileWords, steps, at, k == 0);
        }
      }
    }
    for (int64_t n = from; n < to; n += kPairRowsOfW) {
      const float* at = sums + (n - from) / kPairRowsOfW * sums_of_rows;
      for (int64_t m = 0; m < a.batch; m += kPairRowsOfW, at += kSquare) {
        const int64_t batch = a.batch - m < kPairRowsOfW ? a.batch - m : kPairRowsOfW;
        store_sums(at, to - n < kPairRowsOfW ? to - n : kPairRowsOfW, batch, y + m * y_stride + n, y_stride);
      }
    }
  }
  release_tiles();
  std::free(scratch);
  return finite;
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
