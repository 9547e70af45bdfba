// Checks of the sparse layouts for the kernel self-test: integers to the bits of dense ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "formats/bitmask.hpp"

namespace cases {

// The dense int8 weights of the same codes, which must give the same bits.
template <int kBits>
Dense dense_of(Random& random, const Sparse<int8_t, kBits>& w) {
  const int64_t rows = w.shape.rows, cols = w.shape.cols;
  Dense dense(random, {nullptr, nullptr, nullptr, rows, cols, cols, 8, 0, 0, false, false}, Offsets::kNone);
  for (size_t i = 0; i < w.whole.size(); ++i) dense.codes[i] = static_cast<uint8_t>(w.whole[i] + 128);
  formats::pack(dense.codes.data(), cols, 8, 0, rows, dense.packed.data());
  dense.scales = w.scales;
  return dense;
}

// Integers in blocks of which one in `one_in` is stored; variants: int8, dense, and those of 4 bits in halves of bytes.
template <int kBits>
void check_bsr_ints(Random& random, const BlockSparse& like, const std::string& what, const float* bias, const std::vector<float>& x,
                    const std::string& family, const std::vector<int64_t>& batches, int one_in) {
  const Sparse<int8_t, kBits> ints(random, like, one_in);
  const Dense dense = dense_of(random, ints);
  auto halves = filled<uint8_t>(static_cast<int64_t>(ints.data.size() + 1) / 2);
  for (size_t i = 0; i < ints.data.size(); ++i) halves[i / 2] |= static_cast<uint8_t>(((ints.data[i] + 8) & 15) << (i % 2 * 4));
  BlockSparse packed = ints.shape;
  packed.values = Values::kInt4;
  packed.data = halves.data();
  for (int mode = 0; mode < 2; ++mode) {
    const auto y = same_bits_everywhere(
        what + " " + kModes[mode], like.rows, kBits == 4 ? 3 : 2,
        [&](float* out, int64_t batch, int variant) {
          const Operands io{x.data(), out, bias, batch};
          return variant == 1 ? api::matmul_dense_int(dense.view(false), io, Activations(mode))
                              : api::matmul_bsr(variant ? packed : ints.shape, io, Activations(mode));
        },
        batches);
    digest(family + kModes[mode], y.data(), static_cast<int64_t>(y.size()));
  }
}

inline void check_bsr(Random& random, const BlockSparse& like) {
  const std::string what = "bsr" + text("rows", like.rows) + text("cols", like.cols) + text("R", like.blockrows) +
                           text("C", like.blockcols);
  const auto bias = some_bias(random, like.rows);
  const Sparse<float> floats(random, like);
  const auto tame = activations(random, kMostRows, like.cols, false), wild = activations(random, kMostRows, like.cols, true);
  bounded_everywhere(
      what + " float32", like.rows, like.cols, 1, tame, bias.data(), 1,
      [&](int64_t r, int64_t k) { return double{floats.whole[r * like.cols + k]}; },
      [&](int64_t r, int64_t k) { return std::fabs(double{floats.whole[r * like.cols + k]}); },
      [&](float* out, int64_t batch, int) {
        return api::matmul_bsr(floats.shape, {tame.data(), out, bias.data(), batch}, Activations::kFloat32);
      });
  check_bsr_ints<8>(random, like, what, bias.data(), wild, "bsr int8 ", kBatches, 3);
}

inline void block_sparse() {
  constexpr int64_t kBlocks[][2] = {{1, 1}, {1, 4}, {4, 4}, {16, 1}, {3, 5}};
  Random random(3);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {19, 130}, {32, 257}}) {
    for (const auto& block : kBlocks) {
      for (bool wide : {false, true}) {
        check_bsr(random, {nullptr, nullptr, nullptr, nullptr, rows, cols, block[0], block[1], wide, Values::kFloat32});
      }
    }
  }
}

// Blocks whose rows fill vectors, from runs of single blocks to rows without a hole.
inline void tall_blocks() {
  constexpr int64_t kBlocks[][2] = {{16, 4}, {8, 4}, {16, 16}, {32, 4}, {24, 8}, {16, 6}};
  Random random(7);
  bool wide = false;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{75, 700}, {48, 130}}) {
    for (const auto& block : kBlocks) {
      for (int one_in : {1, 3, 9}) {
        const BlockSparse like{nullptr, nullptr, nullptr, nullptr, rows, cols, block[0], block[1], wide = !wide, Values::kInt8};
        const std::string what = "bsr" + text("rows", rows) + text("cols", cols) + text("R", block[0]) + text("C", block[1]) +
                                 text("one in", one_in);
        const auto bias = some_bias(random, rows);
        const auto x = activations(random, kWideBatches.back(), cols, true);
        check_bsr_ints<8>(random, like, what, bias.data(), x, "tall bsr int8 ", kWideBatches, one_in);
        check_bsr_ints<4>(random, like, what, bias.data(), x, "tall bsr int4 ", kWideBatches, one_in);
      }
    }
  }
}

// Codes at the places of a bitmask, in both forms, and the dense codes of 8 bits that they stand for: one set of bits.
inline void check_masked(Random& random, int64_t rows, int64_t cols, int64_t group, int bits, int density) {
  const std::string what = "bitmask int" + std::to_string(bits) + text("rows", rows) + text("cols", cols) + text("group", group) +
                           text("density", density);
  auto values = filled<int8_t>(rows * cols);
  for (int8_t& v : values) {
    if (random.below(100) < density) v = static_cast<int8_t>(random.below(1 << bits) - (1 << (bits - 1)));
  }
  const Values type = bits == 8 ? Values::kInt8 : Values::kInt4;
  const int64_t panels = ceil_div(rows, kPanelRows);
  auto bitmask = filled<uint8_t>(rows * formats::mask_bytes(cols));
  auto counts = filled<int64_t>(rows), offsets = filled<int64_t>(rows + 1), starts = filled<int64_t>(panels + 1);
  api::find_places(values.data(), type, rows, cols, 0, 1, bitmask.data(), counts.data());
  for (int64_t r = 0; r < rows; ++r) offsets[r + 1] = offsets[r] + formats::row_entries(counts[r], type);
  auto data = filled<uint8_t>(offsets[rows]);
  Bitmask w{bitmask.data(), data.data(), offsets.data(), rows, cols, type};
  api::gather(values.data(), w, data.data());
  auto masks = filled<uint64_t>(panels * formats::mask_steps(cols));
  auto sizes = filled<int64_t>(panels);
  api::panel_masks(w, masks.data(), sizes.data());
  for (int64_t p = 0; p < panels; ++p) starts[p + 1] = starts[p] + sizes[p];
  auto packed = filled<uint8_t>(starts[panels] + kDataPadding);
  if (api::panel_data(w, masks.data(), starts.data(), packed.data()) != Status::kOk) fail(what + ": no memory");

  // Of the same codes: dense, with the zero of narrow ones moved to 128, which changes no difference.
  Dense dense(random, {nullptr, nullptr, nullptr, rows, cols, group, 8, 0, 0, false, false}, Offsets::kNone);
  for (size_t i = 0; i < values.size(); ++i) dense.codes[i] = static_cast<uint8_t>(values[i] + 128);
  formats::pack(dense.codes.data(), cols, 8, 0, rows, dense.packed.data());
  DenseInt canonical = dense.view(false), shape = dense.view(true);
  shape.codes = nullptr;
  canonical.zero = shape.zero = 1 << (bits - 1);
  const MaskedInt panel_form{shape, masks.data(), packed.data(), starts.data(), bits};

  auto again = filled<uint8_t>(rows * formats::mask_bytes(cols));
  api::row_masks(masks.data(), rows, cols, 0, panels, again.data(), counts.data());
  auto stored = filled<uint8_t>(offsets[rows]);
  if (api::row_data(panel_form, w, 0, panels, stored.data()) != Status::kOk || again != bitmask || stored != data) {
    fail(what + ": the canonical form did not return");
  }
  const auto bias = some_bias(random, rows);
  const auto wild = activations(random, kMostRows, cols, true), tame = activations(random, kMostRows, cols, false);
  Random later(7);
  const auto many = activations(later, kLargeBatches.back(), cols, true);
  for (int mode = 0; mode < 2; ++mode) {
    const auto multiply = [&](const std::vector<float>& x, float* out, int64_t batch, int variant) {
      const Operands io{x.data(), out, bias.data(), batch};
      if (variant == 0) return api::matmul_dense_int(dense.view(false), io, Activations(mode));
      return variant == 1 ? api::matmul_masked_int(panel_form, io, Activations(mode))
                          : api::matmul_bitmask(w, &canonical, io, Activations(mode));
    };
    const auto y = same_bits_everywhere(
        what + " " + kModes[mode], rows, 3, [&](float* out, int64_t batch, int variant) { return multiply(wild, out, batch, variant); });
    same_bits_everywhere(
        what + " large " + kModes[mode], rows, 3,
        [&](float* out, int64_t batch, int variant) { return multiply(many, out, batch, variant); }, kLargeBatches);
    digest("bitmask int" + std::to_string(bits) + " " + kModes[mode], y.data(), kMostRows * rows);
  }
  bounded_everywhere(
      what + " float32", rows, cols, dense.groups, tame, bias.data(), 2,
      [&](int64_t r, int64_t k) { return dense.decoded(r, k); }, [&](int64_t r, int64_t k) { return dense.size(r, k); },
      [&](float* out, int64_t batch, int variant) {
        const Operands io{tame.data(), out, bias.data(), batch};
        return variant ? api::matmul_masked_int(panel_form, io, Activations::kFloat32)
                       : api::matmul_bitmask(w, &canonical, io, Activations::kFloat32);
      });
}

// Floats at the places of a bitmask.
inline void check_masked_floats(Random& random, int64_t rows, int64_t cols, Values type) {
  auto weights = filled<float>(rows * cols);
  auto halves = filled<uint16_t>(rows * cols);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (random.below(2)) continue;
    halves[i] = half_bits(random);
    weights[i] = type == Values::kFloat16 ? static_cast<float>(half_value(halves[i])) : random.value();
    uint32_t bits;
    std::memcpy(&bits, &weights[i], 4);
    if (type == Values::kBfloat16) {
      halves[i] = static_cast<uint16_t>(bits >> 16);
      bits &= 0xffff0000u;
      std::memcpy(&weights[i], &bits, 4);
    }
  }
  const void* values = type == Values::kFloat32 ? static_cast<const void*>(weights.data()) : halves.data();
  auto bitmask = filled<uint8_t>(rows * formats::mask_bytes(cols));
  auto counts = filled<int64_t>(rows), offsets = filled<int64_t>(rows + 1);
  api::find_places(values, type, rows, cols, 0, 1, bitmask.data(), counts.data());
  for (int64_t r = 0; r < rows; ++r) offsets[r + 1] = offsets[r] + counts[r];
  auto data = filled<uint8_t>(offsets[rows] * value_bytes(type));
  const Bitmask w{bitmask.data(), data.data(), offsets.data(), rows, cols, type};
  api::gather(values, w, data.data());
  const auto bias = some_bias(random, rows);
  const auto x = activations(random, kMostRows, cols, false);
  const auto weight = [&](int64_t r, int64_t k) { return double{weights[static_cast<size_t>(r * cols + k)]}; };
  bounded_everywhere(
      "bitmask floats" + text("type", static_cast<int>(type)) + text("rows", rows) + text("cols", cols), rows, cols, 1, x, bias.data(),
      1, weight, [&](int64_t r, int64_t k) { return std::fabs(weight(r, k)); },
      [&](float* out, int64_t batch, int) {
        return api::matmul_bitmask(w, nullptr, {x.data(), out, bias.data(), batch}, Activations::kFloat32);
      });
}

inline void bitmasks() {
  Random random(6);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {5, 17}, {33, 130}, {47, 300}}) {
    for (int density : {0, 40, 100}) {
      for (int bits : {4, 8}) {
        check_masked(random, rows, cols, cols, bits, density);
        check_masked(random, rows, cols, 16, bits, density);
      }
    }
    for (Values type : {Values::kFloat32, Values::kFloat16, Values::kBfloat16}) check_masked_floats(random, rows, cols, type);
  }
}

// Compressed rows of integers, to the bits of the dense ones; variants: with runs, without, dense.
template <int kBits>
void check_csr_ints(Random& random, const BlockSparse& like, const std::string& what, const float* bias) {
  const Sparse<int8_t, kBits> ints(random, like);
  const Compressed<int8_t> w(ints, kBits == 8 ? Values::kInt8 : Values::kInt4);
  const Dense dense = dense_of(random, ints);
  const auto wild = activations(random, kWideBatches.back(), like.cols, true);
  for (int mode = 0; mode < 2; ++mode) {
    const auto y = same_bits_everywhere(
        what + text("int", kBits) + " " + kModes[mode], like.rows, 3,
        [&](float* out, int64_t batch, int variant) {
          const Operands io{wild.data(), out, bias, batch};
          return variant == 2 ? api::matmul_dense_int(dense.view(false), io, Activations(mode))
                              : api::matmul_csr(w.view(variant == 0), io, Activations(mode));
        },
        kWideBatches);
    digest("csr int" + std::to_string(kBits) + " " + kModes[mode], y.data(), static_cast<int64_t>(y.size()));
  }
}

// Compressed rows of floats: float32, or 16 bits.
template <class T>
void check_csr_floats(Random& random, const BlockSparse& like, const std::string& what, const float* bias, Values values) {
  const Sparse<T> floats(random, like);
  const Compressed<T> w(floats, values);
  auto whole = filled<float>(like.rows * like.cols);
  api::decode_csr(w.view(false), nullptr, 0, like.rows, whole.data());
  const auto x = activations(random, kWideBatches.back(), like.cols, false);
  bounded_everywhere(
      what + text("values", static_cast<int>(values)), like.rows, like.cols, 1, x, bias, 2,
      [&](int64_t r, int64_t k) { return double{whole[r * like.cols + k]}; },
      [&](int64_t r, int64_t k) { return std::fabs(double{whole[r * like.cols + k]}); },
      [&](float* out, int64_t batch, int variant) {
        return api::matmul_csr(w.view(variant == 0), {x.data(), out, bias, batch}, Activations::kFloat32);
      },
      kWideBatches);
}

inline void compressed_rows() {
  Random random(6);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {19, 130}, {150, 700}}) {
    for (bool wide : {false, true}) {
      const BlockSparse like{nullptr, nullptr, nullptr, nullptr, rows, cols, 1, 1, wide, Values::kFloat32};
      const std::string what = "csr" + text("rows", rows) + text("cols", cols) + text("wide", wide);
      const auto bias = some_bias(random, rows);
      check_csr_floats<float>(random, like, what, bias.data(), Values::kFloat32);
      check_csr_floats<uint16_t>(random, like, what, bias.data(), Values::kFloat16);
      check_csr_floats<uint16_t>(random, like, what, bias.data(), Values::kBfloat16);
      check_csr_ints<8>(random, like, what, bias.data());
      check_csr_ints<4>(random, like, what, bias.data());
    }
  }
}

}  // namespace cases
