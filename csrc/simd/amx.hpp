// The vocabulary for AMX (Sapphire Rapids: INT8 and BF16): that of AVX-512, and the words of the eight tile registers, which are numbers
// that the compiler must know.
//
// As asm: GCC 12's intrinsics take 8 bytes of the 64 of a configuration for its whole, and tile loads for no reads of memory.
#pragma once

#include "simd/avx512.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int kTileRegisters = 8;
constexpr int64_t kMatrixRows = 16, kMatrixRowBytes = 64;  // of a tile register, at most

// Rows, and bytes of a row, of each tile register: Intel SDM, LDTILECFG.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// All registers as large as they can be.
inline TileShapes whole_tiles() {
  TileShapes shapes;
  for (int i = 0; i < kTileRegisters; ++i) {
    shapes.rows[i] = kMatrixRows;
    shapes.row_bytes[i] = kMatrixRowBytes;
  }
  return shapes;
}

inline void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
// From here on a context switch saves no tiles.
inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(p), "r"(stride));
}
template <int kTile, class T>
inline void store_tile(T* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(p), "r"(stride) : "memory");
}
// sums += signed digits of x times unsigned codes, quads of 4 columns: rows of x against rows of w.
template <int kSums, int kDigits, int kCodes>
inline void dot_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kDigits), "i"(kCodes));
}
// sums += bfloat16 pairs of a times those of b: rows of a against columns of b. Numbers below 2^-126 count as 0.
template <int kSums, int kA, int kB>
inline void dot_pairs() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}
// Between stores and the first load_tile that reads them, of which the compiler does not know.
inline void settle() { asm volatile("" : : : "memory"); }

// The digits of a block of codes (quantize.inl.hpp), a plane of kBlock bytes each, `plane` bytes apart, in the order of steps
// (views.hpp, Unit): of 4 * kApart columns first those at 0, kApart, ..., then those at 1, kApart + 1, ...
template <int kApart, int kPlanes>
inline void store_digits(const int16_t* codes, uint8_t* out, int64_t plane) {
  const __m128i order = kApart == 2 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto store = [&](uint8_t* p, __m512i wide) {
    __m256i bytes = _mm512_cvtepi16_epi8(wide);
    if (kApart > 1) bytes = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
  };
  for (int64_t i = 0; i < kBlock; i += 32, codes += 32, out += 32) {
    const __m512i a = _mm512_loadu_si512(codes);
    if (kPlanes == 1) {
      store(out, a);
    } else {
      const __m512i hi = _mm512_srai_epi16(_mm512_add_epi16(a, _mm512_set1_epi16(64)), 7);
      store(out, hi);
      store(out + plane, _mm512_sub_epi16(a, _mm512_slli_epi16(hi, 7)));
    }
  }
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
