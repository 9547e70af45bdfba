// What conversion spends its time on: rows as a file has them -> ranges, codes, and what these lose.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/halves.hpp"
#include "formats/packing.hpp"
#include "views.hpp"

namespace pumice::PUMICE_ISA {
namespace {

constexpr int64_t kEncodeStrip = 512;      // codes that wait for packing, in the nearest cache; a multiple of kEnergyChains
constexpr int64_t kEnergyChains = 16;      // sums of squares, each of every 16th column: on every ISA the same
constexpr float kMagic = 12582912.0f, kFar = 1024.0f;  // as formats::round_half_even

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Values of one kind, as float32: kLanes from number i on, and number i.
template <Values kKind>
struct Stored {
  const void* values;

  template <class T>
  const T* from(int64_t i) const {
    return static_cast<const T*>(values) + i;
  }
  F32 load(int64_t i) const {
    if constexpr (kKind == Values::kFloat16) return load_half(from<uint16_t>(i));
    if constexpr (kKind == Values::kBfloat16) return load_bfloat16(from<uint16_t>(i));
    return load_f32(from<float>(i));
  }
  float at(int64_t i) const {
    if constexpr (kKind == Values::kFloat16) return formats::from_float16(*from<uint16_t>(i));
    if constexpr (kKind == Values::kBfloat16) return formats::from_bfloat16(*from<uint16_t>(i));
    return *from<float>(i);
  }
};

// body(rows of their kind)
template <class Body>
inline void as_stored(const StoredMatrix& w, const Body& body) {
  if (w.kind == Values::kFloat16) return body(Stored<Values::kFloat16>{w.values});
  if (w.kind == Values::kBfloat16) return body(Stored<Values::kBfloat16>{w.values});
  body(Stored<Values::kFloat32>{w.values});
}

// Whether all are finite.
bool all_finite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return !bad;
}

// Of values begin .. end-1. Zeros are +0, so that the order of a zero of each sign does not matter.
template <class V>
inline void range_run(const V& v, int64_t begin, int64_t end, float* low, float* high) {
  F32 lo = set_f32(__builtin_inff()), hi = set_f32(-__builtin_inff()), size = zero_f32();
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const F32 some = v.load(i);
    lo = smaller(some, lo);
    hi = larger(some, hi);
    size = max_abs(size, some);
  }
  float least_one = least_lane(lo), most = most_lane(hi);
  bool finite = max_lane(size) <= 0x1.fffffep127f;
  for (; i < end; ++i) {
    const float one = v.at(i);
    least_one = one < least_one ? one : least_one;
    most = one > most ? one : most;
    finite &= __builtin_isfinite(one);
  }
  *low = finite ? least_one + 0.0f : __builtin_nanf("");
  *high = finite ? most + 0.0f : __builtin_nanf("");
}

void range_rows(const StoredMatrix& w, int64_t group, int64_t begin, int64_t end, float* low, float* high) {
  as_stored(w, [&](const auto& v) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t k = 0; k < w.cols; k += group) {
        const int64_t first = row * w.cols, at = row * ceil_div(w.cols, group) + k / group;
        range_run(v, first + k, first + least(w.cols, k + group), low + at, high + at);
      }
    }
  });
}

// What the codes of a group mean.
struct Level {
  float scale, zero, minimum, top;
};

// formats::nearest_code of `count` values from number `first` on, where the scale is not 0, and what the codes stand for.
template <class V>
inline void encode_run(const V& v, int64_t first, int64_t count, const Level& level, uint8_t* codes, float* decoded) {
  const F32 scale = set_f32(level.scale), zero = set_f32(level.zero), minimum = set_f32(level.minimum), top = set_f32(level.top);
  const F32 magic = set_f32(kMagic), far = set_f32(kFar), near = set_f32(-kFar);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    F32 steps = div(sub(v.load(first + i), minimum), scale);
    steps = smaller(far, larger(near, steps));
    F32 code = add(zero, sub(add(steps, magic), magic));
    code = larger(smaller(top, code), zero_f32());  // a NaN becomes 0
    store_u8(codes + i, code);
    store_f32(decoded + i, add(mul(scale, sub(code, zero)), minimum));
  }
  for (; i < count; ++i) {
    float steps = (v.at(first + i) - level.minimum) / level.scale;
    steps = -kFar > steps ? -kFar : steps;
    steps = kFar < steps ? kFar : steps;
    float code = level.zero + ((steps + kMagic) - kMagic);
    code = level.top < code ? level.top : code;
    code = code > 0.0f ? code : 0.0f;
    codes[i] = static_cast<uint8_t>(static_cast<int>(code));
    decoded[i] = level.scale * (code - level.zero) + level.minimum;
  }
}

// The sum of the squares of a row, and that of its differences from another (each rounded to float).
struct Energies {
  static constexpr int kVectors = kEnergyChains / kLanes;
  Squares lost[kVectors], whole[kVectors];

  Energies() {
    for (int j = 0; j < kVectors; ++j) lost[j] = whole[j] = zero_squares();
  }
  // Whole chains of `count` values from number `first` on; how many these were.
  template <class V>
  int64_t add_chains(const V& v, int64_t first, int64_t count, const float* decoded) {
    int64_t k = 0;
    for (; k + kEnergyChains <= count; k += kEnergyChains) {
      for (int j = 0; j < kVectors; ++j) {
        const F32 exact = v.load(first + k + j * kLanes);
        add_squares(lost[j], sub(exact, load_f32(decoded + k + j * kLanes)));
        add_squares(whole[j], exact);
      }
    }
    return k;
  }
  static double sum_of(const Squares (&sums)[kVectors]) {
    double chains[kEnergyChains], sum = 0;
    for (int j = 0; j < kVectors; ++j) store_squares(chains + j * kLanes, sums[j]);
    for (int64_t i = 0; i < kEnergyChains / 2; ++i) sum += chains[i] + chains[i + kEnergyChains / 2];
    return sum;
  }
  // The sums of the chains, and of the `count` values behind them.
  template <class V>
  void end(const V& v, int64_t first, int64_t count, const float* decoded, double* noise, double* signal) const {
    *noise = sum_of(lost);
    *signal = sum_of(whole);
    for (int64_t k = 0; k < count; ++k) {
      const float exact = v.at(first + k);
      const double missed = exact - decoded[k], all = exact;
      *noise += missed * missed;
      *signal += all * all;
    }
  }
};

void row_energy(const float* exact, const float* decoded, int64_t cols, double* noise, double* signal) {
  const Stored<Values::kFloat32> v{exact};
  Energies energies;
  const int64_t done = energies.add_chains(v, 0, cols, decoded);
  energies.end(v, done, cols - done, decoded + done, noise, signal);
}

void encode_rows(const StoredMatrix& w, const Grid& grid, int64_t group, int64_t begin, int64_t end, uint8_t* packed,
                 double* noise, double* signal) {
  const int bits = grid.bits, middle = grid.minima ? 0 : 1 << (bits - 1);
  const int64_t bytes = formats::row_bytes(w.cols, bits);
  const float top = static_cast<float>((1 << bits) - 1);
  as_stored(w, [&](const auto& v) {
    float decoded[kEncodeStrip];
    uint8_t codes[kEncodeStrip];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row * w.cols;
      uint8_t* out = packed + row * bytes;
      formats::clear_padding(out, w.cols, bits);
      Energies energies;
      for (int64_t k = 0; k < w.cols; k += kEncodeStrip) {
        const int64_t stop = least(w.cols, k + kEncodeStrip);
        for (int64_t i = k; i < stop;) {
          const int64_t n = i / group, run = least(stop, (n + 1) * group), at = row * grid.groups + n;
          const int zero = grid.zeros ? grid.zeros[at] : middle;
          const Level level{grid.scales[at], static_cast<float>(zero), grid.minima ? grid.minima[at] : -0.0f, top};
          if (level.scale == 0.0f) {
            std::memset(codes + (i - k), zero, static_cast<size_t>(run - i));
            for (int64_t j = i; j < run; ++j) decoded[j - k] = level.minimum + 0.0f;
          } else {
            encode_run(v, first + i, run - i, level, codes + (i - k), decoded + (i - k));
          }
          i = run;
        }
        formats::pack_strip(codes, stop - k, bits, out + k * bits / 8);
        if (!noise) continue;
        const int64_t done = energies.add_chains(v, first + k, stop - k, decoded);
        if (stop < w.cols) continue;
        energies.end(v, first + k + done, stop - k - done, decoded + done, noise + row, signal + row);
      }
    }
  });
}

}  // namespace
}  // namespace pumice::PUMICE_ISA
