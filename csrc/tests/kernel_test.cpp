// Self-test of the kernels: every one, on every ISA that this machine runs. Prints each check that fails.
//
//   kernel_test                 integer modes: all ISAs, forms and batches to the bits of scalar, and those to the digests
//                               in kernel_digests.inc, so that x86 and arm64 agree; float modes: to a derived bound
//   kernel_test neon scalar     the same, and fails if other ISAs than these would run
//   kernel_test --digests       the new content of kernel_digests.inc
//
// Built by CMake with -DPUMICE_SELF_TEST=ON. Inputs are made from integers (cases.hpp); nothing here depends on libm.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cases.hpp"
#include "dispatch/api.hpp"
#include "dispatch/table.hpp"

namespace {

using namespace cases;

const std::vector<int64_t> kBatches = {1, 2, 3, 5, 8, 13};
const std::vector<int64_t> kWideBatches = {1, 2, 3, 17, 33, 70};  // of csr, which takes tiles of up to 64 rows of x
constexpr int64_t kMostRows = 13;
int failures = 0, products = 0;

void fail(const std::string& what) {
  ++failures;
  std::fprintf(stderr, "kernel_test: %s\n", what.c_str());
}

std::string text(const char* name, int64_t value) { return std::string(" ") + name + "=" + std::to_string(value); }

// The names of the ISAs, scalar first.
std::vector<const char*> isas() {
  std::vector<const char*> names;
  for (int i = api::isa_count() - 1; i >= 0; --i) names.push_back(api::isa_name_at(i));
  return names;
}

// FNV-1a, 64 bits, of all results of a family.
struct Digest {
  std::string family;
  uint64_t value = 0xcbf29ce484222325u;
};
std::vector<Digest> digests;

template <class T>
void digest(const std::string& family, const T* values, int64_t count) {
  Digest* found = nullptr;
  for (Digest& each : digests) {
    if (each.family == family) found = &each;
  }
  if (!found) {
    digests.push_back({family});
    found = &digests.back();
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);  // of a little-endian machine
  for (size_t i = 0; i < static_cast<size_t>(count) * sizeof(T); ++i) found->value = (found->value ^ bytes[i]) * 0x100000001b3u;
}

// y[batch][rows] of a product, on the ISA chosen last. y begins as what no kernel would leave there.
template <class Multiply>
std::vector<float> product(int64_t batch, int64_t rows, const Multiply& multiply) {
  std::vector<float> y(static_cast<size_t>(batch * rows), 1e30f);
  if (multiply(y.data()) != Status::kOk) fail("a product returned an error");
  ++products;
  return y;
}

// y of scalar for the whole batch; every ISA and every smaller batch must give the same bits.
// multiply(y, batch, variant), variant < variants: ways that must not matter either, such as forms.
template <class Multiply>
std::vector<float> same_bits_everywhere(const std::string& what, int64_t rows, int variants, const Multiply& multiply,
                                        const std::vector<int64_t>& batches = kBatches) {
  const int64_t most = batches.back();
  std::vector<float> expected;
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    if (expected.empty()) expected = product(most, rows, [&](float* y) { return multiply(y, most, 0); });
    for (int64_t batch : batches) {
      for (int variant = 0; variant < variants; ++variant) {
        const auto y = product(batch, rows, [&](float* out) { return multiply(out, batch, variant); });
        if (std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0) {
          fail(what + text("batch", batch) + text("variant", variant) + ": " + isa + " differs from scalar");
        }
      }
    }
  }
  return expected;
}

// |y - exact| <= gamma(cols + 2 groups + 4) * (|x| |w| + |bias|), docs/formats.md, "Products"; weight(r, k) is exact, and
// size(r, k) is |w|.
template <class Weight, class Size, class Multiply>
void bounded_everywhere(const std::string& what, int64_t rows, int64_t cols, int64_t groups, const std::vector<float>& x,
                        const float* bias, int variants, const Weight& weight, const Size& size_of, const Multiply& multiply,
                        const std::vector<int64_t>& batches = kBatches) {
  const int64_t most = batches.back();
  const double n = static_cast<double>(cols + 2 * groups + 4) * 0x1p-24, gamma = n / (1 - n);
  auto exact = filled<double>(most * rows), bound = filled<double>(most * rows);
  for (int64_t m = 0; m < most; ++m) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = bias ? double{bias[r]} : 0.0, size = std::fabs(sum);
      for (int64_t k = 0; k < cols; ++k) {
        sum += weight(r, k) * double{x[m * cols + k]};
        size += size_of(r, k) * std::fabs(double{x[m * cols + k]});
      }
      exact[m * rows + r] = sum;
      bound[m * rows + r] = (gamma + 0x1p-40) * size;  // the double sums here are off by less than 2^-40
    }
  }
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    for (int64_t batch : batches) {
      for (int variant = 0; variant < variants; ++variant) {
        const auto y = product(batch, rows, [&](float* out) { return multiply(out, batch, variant); });
        for (size_t i = 0; i < y.size(); ++i) {
          if (std::fabs(double{y[i]} - exact[i]) <= bound[i]) continue;  // false for NaN
          fail(what + text("batch", batch) + text("variant", variant) + ": " + isa + " is off by more than the bound");
          break;
        }
      }
    }
  }
}

std::vector<float> some_bias(Random& random, int64_t rows) {
  auto bias = filled<float>(rows);
  for (float& v : bias) v = random.value();
  return bias;
}

const char* const kModes[] = {"int16", "int8"};

void check_dense(Random& random, const DenseInt& like, Offsets offsets) {
  const Dense w(random, like, offsets);
  const std::string bits = "int" + std::to_string(like.bits);
  const std::string what = "dense " + bits + text("rows", like.rows) + text("cols", like.cols) + text("group", like.group) +
                           text("offsets", static_cast<int>(offsets)) + text("half", like.half_scales);
  const auto bias = some_bias(random, like.rows);
  const float* added = random.below(2) ? bias.data() : nullptr;
  const auto wild = activations(random, kMostRows, like.cols, true), tame = activations(random, kMostRows, like.cols, false);
  for (int mode = 0; mode < 2; ++mode) {
    const auto y = same_bits_everywhere(what + " " + kModes[mode], like.rows, 2, [&](float* out, int64_t batch, int variant) {
      return api::matmul_dense_int(w.view(variant == 1), {wild.data(), out, added, batch}, Activations(mode));
    });
    digest("dense " + bits + (offsets == Offsets::kMinima ? "-min " : " ") + kModes[mode], y.data(), kMostRows * like.rows);
  }
  if (like.bits != 4 && like.bits != 8) return;  // no kernel: the layout decodes row panels
  bounded_everywhere(
      what + " float32", like.rows, like.cols, w.groups, tame, added, 2, [&](int64_t r, int64_t k) { return w.decoded(r, k); },
      [&](int64_t r, int64_t k) { return w.size(r, k); },
      [&](float* out, int64_t batch, int variant) {
        return api::matmul_dense_int(w.view(variant == 1), {tame.data(), out, added, batch}, Activations::kFloat32);
      });
}

void dense_ints() {
  constexpr int64_t kShapes[][2] = {{1, 1}, {5, 17}, {16, 128}, {33, 130}, {47, 300}, {31, 520}, {64, 16}};
  constexpr int64_t kGroups[] = {16, 32, 64, 128, 0};  // 0: one a row
  Random random(1);
  int shape = 0;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int64_t group : kGroups) {
      for (int variant = 0; variant < 12; ++variant) {
        const auto [rows, cols] = kShapes[shape++ % 7];  // each width and group meets all shapes
        const uint8_t flip = bits == 8 && shape % 2 ? 0x80 : 0;
        const bool half = variant & 1;
        const auto offsets = Offsets(variant / 2 % 3);
        check_dense(random, {nullptr, nullptr, nullptr, rows, cols, group ? group : cols, bits, 0, flip, half, false}, offsets);
      }
    }
  }
}

// AVX2 widens codes for so many rows: tiles of 6 and 5.
void large_batches() {
  constexpr int64_t kBatch = 29, kRows = 33;
  Random random(6);
  int shape = 0;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int64_t group : {16, 32, 128, 512}) {
      const int64_t cols = shape++ % 2 ? 300 : 277;
      const uint8_t flip = bits == 8 && group != 32 ? 0x80 : 0;
      const Dense w(random, {nullptr, nullptr, nullptr, kRows, cols, group, bits, 0, flip, false, false}, Offsets(shape % 3));
      const auto x = activations(random, kBatch, cols, true);
      for (int mode = 0; mode < 2; ++mode) {
        std::vector<float> expected;
        for (const char* isa : isas()) {
          api::choose_isa(isa);
          const auto y = product(kBatch, kRows, [&](float* out) {
            return api::matmul_dense_int(w.view(true), {x.data(), out, nullptr, kBatch}, Activations(mode));
          });
          if (expected.empty()) expected = y;
          if (std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0) continue;
          fail("dense int" + std::to_string(bits) + text("batch", kBatch) + text("group", group) + ": " + isa + " differs from scalar");
        }
      }
    }
  }
}

void dense_halves() {
  Random random(2);
  for (int64_t cols : {1, 7, 16, 33, 64, 130}) {
    for (bool bfloat16 : {false, true}) {
      constexpr int64_t kRows = 5;
      auto bits = filled<uint16_t>(kRows * cols);
      for (uint16_t& v : bits) {
        v = bfloat16 ? static_cast<uint16_t>(random.below(2) << 15 | (110 + random.below(20)) << 7 | random.below(128))
                     : half_bits(random);
      }
      const auto bias = some_bias(random, kRows);
      const auto x = activations(random, kMostRows, cols, false);
      const DenseHalf w{bits.data(), kRows, cols, bfloat16};
      const auto weight = [&](int64_t r, int64_t k) {
        const uint16_t v = bits[r * cols + k];
        if (!bfloat16) return half_value(v);
        return (v >> 15 ? -1 : 1) * std::ldexp(128 + (v & 127), (v >> 7 & 255) - 134);
      };
      bounded_everywhere(
          (bfloat16 ? "bfloat16" : "float16") + text("cols", cols), kRows, cols, 1, x, bias.data(), 1, weight,
          [&](int64_t r, int64_t k) { return std::fabs(weight(r, k)); },
          [&](float* out, int64_t batch, int) { return api::matmul_dense_half(w, {x.data(), out, bias.data(), batch}); });
    }
  }
}

void dense_float8() {
  Random random(8);
  for (int64_t cols : {1, 7, 16, 33, 64, 130, 300}) {
    for (int64_t group : {int64_t{16}, int64_t{128}, cols}) {
      constexpr int64_t kRows = 35;
      const int64_t groups = (cols + group - 1) / group;
      auto codes = filled<uint8_t>(kRows * cols);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(2) << 7 | random.below(127));
      auto scales = filled<float>(kRows * groups);
      for (float& scale : scales) scale = random.value();
      const auto bias = some_bias(random, kRows);
      const auto x = activations(random, kMostRows, cols, false);
      const DenseFloat8 w{codes.data(), scales.data(), kRows, cols, group};
      const auto weight = [&](int64_t r, int64_t k) {
        const int code = codes[r * cols + k], exponent = code >> 3 & 15, mantissa = code & 7;
        const double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
        return (code >> 7 ? -size : size) * scales[r * groups + k / group];
      };
      bounded_everywhere(
          "float8" + text("cols", cols) + text("group", group), kRows, cols, groups, x, bias.data(), 1, weight,
          [&](int64_t r, int64_t k) { return std::fabs(weight(r, k)); },
          [&](float* out, int64_t batch, int) { return api::matmul_dense_float8(w, {x.data(), out, bias.data(), batch}); });
    }
  }
  const uint8_t nan = 0xff;
  const float one = 1;
  float y = 0;
  api::matmul_dense_float8({&nan, &one, 1, 1, 1}, {&one, &y, nullptr, 1});
  if (!std::isnan(y)) fail("float8: 0xff is not NaN");
}

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

void check_bsr(Random& random, const BlockSparse& like) {
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
  const Sparse<int8_t> ints(random, like);
  const Dense dense = dense_of(random, ints);
  for (int mode = 0; mode < 2; ++mode) {
    const auto y = same_bits_everywhere(what + " " + kModes[mode], like.rows, 2, [&](float* out, int64_t batch, int variant) {
      const Operands io{wild.data(), out, bias.data(), batch};
      return variant ? api::matmul_dense_int(dense.view(false), io, Activations(mode))
                     : api::matmul_bsr(ints.shape, io, Activations(mode));
    });
    digest(std::string("bsr int8 ") + kModes[mode], y.data(), kMostRows * like.rows);
  }
}

void block_sparse() {
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

// Codes at the places of a bitmask, in both forms, and the dense codes of 8 bits that they stand for: one set of bits.
void check_masked(Random& random, int64_t rows, int64_t cols, int64_t group, int bits, int density) {
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
  for (int mode = 0; mode < 2; ++mode) {
    const auto y = same_bits_everywhere(what + " " + kModes[mode], rows, 3, [&](float* out, int64_t batch, int variant) {
      const Operands io{wild.data(), out, bias.data(), batch};
      if (variant == 0) return api::matmul_dense_int(dense.view(false), io, Activations(mode));
      return variant == 1 ? api::matmul_masked_int(panel_form, io, Activations(mode))
                          : api::matmul_bitmask(w, &canonical, io, Activations(mode));
    });
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
void check_masked_floats(Random& random, int64_t rows, int64_t cols, Values type) {
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

void bitmasks() {
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

void compressed_rows() {
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

// One row of activations on every ISA.
void check_quantize(const std::vector<float>& x, int mode) {
  const auto cols = static_cast<int64_t>(x.size()), blocks = ceil_div(cols, kBlock);
  std::vector<int16_t> expected;
  std::vector<float> expected_scales;
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    std::vector<int16_t> codes(static_cast<size_t>(blocks * kBlock), 99);
    std::vector<float> scales(static_cast<size_t>(blocks), 99.0f);
    uint8_t finite = 99;
    QuantizedRows a{};
    a.codes = codes.data();
    a.scales = scales.data();
    a.finite = &finite;
    a.padded = blocks * kBlock;
    a.blocks = blocks;
    kernels().quantize_row(x.data(), cols, mode == 0, a, 0);
    if (expected.empty()) {
      expected = codes;
      expected_scales = scales;
      digest(std::string("quantize ") + kModes[mode], codes.data(), a.padded);
      digest(std::string("quantize ") + kModes[mode], scales.data(), blocks);
    }
    if (codes != expected || std::memcmp(scales.data(), expected_scales.data(), scales.size() * sizeof(float)) != 0) {
      fail("quantize " + std::string(kModes[mode]) + text("cols", cols) + ": " + isa + " differs from scalar");
    }
  }
}

void quantized_rows() {
  Random random(4);
  for (int mode = 0; mode < 2; ++mode) {
    for (int64_t cols : {1, 127, 128, 129, 400}) {
      for (int64_t m = 0; m < 5; ++m) {
        const auto rows = activations(random, 5, cols, true);
        check_quantize({rows.begin() + m * cols, rows.begin() + (m + 1) * cols}, mode);
      }
    }
    std::vector<float> ties(kBlock);  // the largest is the limit, so the scale is 1
    for (int64_t i = 1; i < kBlock; ++i) ties[i] = static_cast<float>(i - 64) + 0.5f;
    ties[0] = mode == 0 ? 16256.0f : 127.0f;
    check_quantize(ties, mode);
  }
}

// Codes through every form and back.
void formats_round_trip() {
  Random random(5);
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int64_t cols : {1, 31, 128, 300}) {
      for (Offsets offsets : {Offsets::kNone, Offsets::kZeros, Offsets::kMinima}) {
        constexpr int64_t kRows = 19;
        const Dense w(random, {nullptr, nullptr, nullptr, kRows, cols, 32, bits, 0, 0, false, false}, offsets);
        const formats::Groups g{cols, 32, w.groups, bits};
        const uint8_t* zeros = w.zeros.empty() ? nullptr : w.zeros.data();
        const float* minima = w.minima.empty() ? nullptr : w.minima.data();
        auto again = w.packed;
        for (uint8_t& v : again) v = 0xAA;
        std::vector<int64_t> ids;
        for (int64_t r = 0; r < kRows; ++r) ids.push_back(r);
        api::unprepack(w.panels.data(), ids.data(), kRows, cols, bits, again.data());
        const bool unpacked = again == w.packed;
        auto decoded = filled<float>(kRows * cols), low = filled<float>(kRows * w.groups), high = low;
        api::decode(w.packed.data(), w.scales.data(), zeros, minima, kRows, g, 0, decoded.data());
        api::encode(decoded.data(), w.scales.data(), zeros, minima, kRows, g, again.data());
        api::group_range(decoded.data(), kRows, g, low.data(), high.data());
        if (!unpacked || again != w.packed) fail("formats" + text("bits", bits) + text("cols", cols) + ": codes did not return");
        digest("panels", w.panels.data(), static_cast<int64_t>(w.panels.size()));
        digest("decoded", decoded.data(), kRows * cols);
        digest("ranges", low.data(), kRows * w.groups);
        digest("ranges", high.data(), kRows * w.groups);
        for (float& v : decoded) v = random.value() * 0.25f;
        api::encode(decoded.data(), w.scales.data(), zeros, minima, kRows, g, again.data());
        digest("encoded", again.data(), static_cast<int64_t>(again.size()));
      }
    }
  }
}

void check_digests() {
  const std::vector<Digest> known = {
#include "kernel_digests.inc"
  };
  if (known.size() != digests.size()) fail("kernel_digests.inc has other families than this test");
  for (const Digest& each : digests) {
    bool same = false;
    for (const Digest& other : known) same = same || (other.family == each.family && other.value == each.value);
    if (!same) fail(each.family + ": the digest is not the one in kernel_digests.inc");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool print = argc == 2 && std::strcmp(argv[1], "--digests") == 0;
  std::string wanted, running;
  for (int i = 1; i < argc && !print; ++i) wanted += std::string(" ") + argv[i];
  for (int i = 0; i < api::isa_count(); ++i) running += std::string(" ") + api::isa_name_at(i);
  if (!wanted.empty() && wanted != running) fail("expected the ISAs" + wanted + ", got" + running);
  formats_round_trip();
  quantized_rows();
  dense_ints();
  large_batches();
  dense_halves();
  dense_float8();
  block_sparse();
  bitmasks();
  compressed_rows();
  if (print) {
    for (const Digest& each : digests) {
      std::printf("{\"%s\", 0x%016llxu},\n", each.family.c_str(), static_cast<unsigned long long>(each.value));
    }
  } else {
    check_digests();
    std::printf("kernel_test:%s: %d products, %d failures\n", running.c_str(), products, failures);
  }
  return failures == 0 ? 0 : 1;
}
