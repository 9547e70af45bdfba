// product_tile: a tile of a @ b in float32 or float64, for dispatch/product.cpp.
//
// Every sum is made alone and in the order of its terms, so its bits depend on nothing around it: not on the tile that it is in.
#pragma once

#include "kernels/table.hpp"
#include "kernels/unroll.hpp"

namespace pumice::PUMICE_ISA {
namespace {

inline F32 load(const float* p) { return load_f32(p); }
inline F64 load(const double* p) { return load_f64(p); }
inline F32 spread(float v) { return set_f32(v); }
inline F64 spread(double v) { return set_f64(v); }
inline void store(float* p, F32 v) { store_f32(p, v); }
inline void store(double* p, F64 v) { store_f64(p, v); }

template <class T>
inline void tile_of(const T* a, const T* b, int64_t depth, T* tile) {
  using V = decltype(load(b));
  constexpr int kWidth = kTileBytes / sizeof(T), kPart = sizeof(V) / sizeof(T);
  constexpr int kVectors = 2, kRows = kRegisters == 32 ? 12 : 6;  // with two vectors of b and one of a all is in registers
  static_assert(kTileHeight % kRows == 0 && kWidth % (kVectors * kPart) == 0);
  for (int row = 0; row < kTileHeight; row += kRows) {
    for (int col = 0; col < kWidth; col += kVectors * kPart) {
      V sums[kRows][kVectors];
      unroll<kRows>([&](auto m) { unroll<kVectors>([&](auto n) { sums[m][n] = spread(T(0)); }); });
      for (int64_t k = 0; k < depth; ++k) {
        V right[kVectors];
        unroll<kVectors>([&](auto n) { right[n] = load(b + k * kWidth + col + n * kPart); });
        unroll<kRows>([&](auto m) ALWAYS_INLINE {
          const V left = spread(a[k * kTileHeight + row + m]);
          unroll<kVectors>([&](auto n) { sums[m][n] = muladd(left, right[n], sums[m][n]); });
        });
      }
      unroll<kRows>([&](auto m) {
        unroll<kVectors>([&](auto n) { store(tile + (row + m) * kWidth + col + n * kPart, sums[m][n]); });
      });
    }
  }
}

void product_tile_f32(const float* a, const float* b, int64_t depth, float* tile) { tile_of(a, b, depth, tile); }
void product_tile_f64(const double* a, const double* b, int64_t depth, double* tile) { tile_of(a, b, depth, tile); }

}  // namespace
}  // namespace pumice::PUMICE_ISA
