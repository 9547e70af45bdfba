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
#include "checks.hpp"
#include "dispatch/api.hpp"
#include "dispatch/table.hpp"
#include "sparse_checks.hpp"

namespace {

using namespace cases;

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

// AVX2 widens codes for so many rows, in tiles of 6 and 5; AMX takes tiles of 16, of 15 and 14, and of 11.
void large_batches() {
  constexpr int64_t kRows = 33;
  Random random(6);
  int shape = 0;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int64_t group : {16, 32, 64, 128, 256, 512}) {
      const int64_t cols = shape++ % 2 ? 300 : 277;
      const uint8_t flip = bits == 8 && group != 32 ? 0x80 : 0;
      const Dense w(random, {nullptr, nullptr, nullptr, kRows, cols, group, bits, 0, flip, false, false}, Offsets(shape / 2 % 3));
      const auto x = activations(random, kLargeBatches.back(), cols, true);
      for (int mode = 0; mode < 2; ++mode) {
        same_bits_everywhere(
            "large dense int" + std::to_string(bits) + text("cols", cols) + text("group", group) + " " + kModes[mode], kRows, 1,
            [&](float* out, int64_t batch, int) {
              return api::matmul_dense_int(w.view(true), {x.data(), out, nullptr, batch}, Activations(mode));
            },
            kLargeBatches);
      }
    }
  }
}

void dense_halves() {
  Random random(2);
  for (int64_t cols : {1, 7, 16, 33, 64, 130, 1100}) {
    for (bool bfloat16 : {false, true}) {
      constexpr int64_t kRows = 37;
      auto bits = filled<uint16_t>(kRows * cols);
      for (uint16_t& v : bits) {
        v = bfloat16 ? static_cast<uint16_t>(random.below(2) << 15 | (110 + random.below(20)) << 7 | random.below(128))
                     : half_bits(random);
      }
      const auto bias = some_bias(random, kRows);
      const auto x = activations(random, kHalfBatches.back(), cols, false);
      const DenseHalf w{bits.data(), kRows, cols, bfloat16};
      const auto weight = [&](int64_t r, int64_t k) {
        const uint16_t v = bits[r * cols + k];
        if (!bfloat16) return half_value(v);
        return (v >> 15 ? -1 : 1) * std::ldexp(128 + (v & 127), (v >> 7 & 255) - 134);
      };
      bounded_everywhere(
          (bfloat16 ? "bfloat16" : "float16") + text("cols", cols), kRows, cols, 1, x, bias.data(), 1, weight,
          [&](int64_t r, int64_t k) { return std::fabs(weight(r, k)); },
          [&](float* out, int64_t batch, int) { return api::matmul_dense_half(w, {x.data(), out, bias.data(), batch}); },
          kHalfBatches);
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
        const Grid grid{w.scales.data(), w.zeros.empty() ? nullptr : w.zeros.data(), w.minima.empty() ? nullptr : w.minima.data(),
                        w.groups, bits};
        auto again = w.packed;
        for (uint8_t& v : again) v = 0xAA;
        std::vector<int64_t> ids;
        for (int64_t r = 0; r < kRows; ++r) ids.push_back(r);
        api::unprepack(w.panels.data(), ids.data(), kRows, cols, bits, again.data());
        const bool unpacked = again == w.packed;
        auto decoded = filled<float>(kRows * cols), low = filled<float>(kRows * w.groups), high = low;
        api::decode(w.packed.data(), grid, 32, kRows, cols, 0, decoded.data());
        const StoredMatrix floats{decoded.data(), kRows, cols, Values::kFloat32};
        api::encode(floats, grid, 32, again.data(), nullptr, nullptr);
        api::group_range(floats, 32, low.data(), high.data());
        if (!unpacked || again != w.packed) fail("formats" + text("bits", bits) + text("cols", cols) + ": codes did not return");
        digest("panels", w.panels.data(), static_cast<int64_t>(w.panels.size()));
        digest("decoded", decoded.data(), kRows * cols);
        digest("ranges", low.data(), kRows * w.groups);
        digest("ranges", high.data(), kRows * w.groups);
        for (float& v : decoded) v = random.value() * 0.25f;
        api::encode(floats, grid, 32, again.data(), nullptr, nullptr);
        digest("encoded", again.data(), static_cast<int64_t>(again.size()));
      }
    }
  }
}

// Rows as a file has them, on every ISA: the ranges, codes and energies of their floats, and those of what the codes stand for.
void check_encoding(Random& random, Values kind, int64_t cols, int64_t group, int bits, Offsets offsets) {
  constexpr int64_t kRows = 3;
  const std::string what = "encoding" + text("kind", static_cast<int>(kind)) + text("cols", cols) + text("group", group) + text("bits", bits);
  const Dense like(random, {nullptr, nullptr, nullptr, kRows, cols, group, bits, 0, 0, false, false}, offsets);
  const Grid grid{like.scales.data(), like.zeros.empty() ? nullptr : like.zeros.data(),
                  like.minima.empty() ? nullptr : like.minima.data(), like.groups, bits};
  auto floats = filled<float>(kRows * cols);
  auto halves = filled<uint16_t>(kRows * cols);
  for (int64_t i = 0; i < kRows * cols; ++i) {
    halves[i] = half_bits(random);
    floats[i] = kind == Values::kFloat32    ? random.value()
                : kind == Values::kFloat16 ? static_cast<float>(half_value(halves[i]))
                                           : formats::from_bfloat16(halves[i]);
  }
  const StoredMatrix plain{floats.data(), kRows, cols, Values::kFloat32};
  const StoredMatrix stored{kind == Values::kFloat32 ? static_cast<const void*>(floats.data()) : halves.data(), kRows, cols, kind};
  auto low = filled<float>(kRows * like.groups), high = low, decoded = floats;
  auto packed = like.packed, again = packed;
  auto noise = filled<double>(kRows), signal = noise, lost = noise, whole = noise;
  std::vector<float> ranges;
  std::vector<double> energies;
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    api::encode(plain, grid, group, packed.data(), nullptr, nullptr);
    for (uint8_t& v : again) v = 0xAA;
    api::encode(stored, grid, group, again.data(), noise.data(), signal.data());
    api::decode(packed.data(), grid, group, kRows, cols, 0, decoded.data());
    api::row_energies(floats.data(), decoded.data(), kRows, cols, lost.data(), whole.data());
    api::group_range(stored, group, low.data(), high.data());
    auto both = low;
    both.insert(both.end(), high.begin(), high.end());
    auto all = noise;
    all.insert(all.end(), signal.begin(), signal.end());
    if (ranges.empty()) {
      ranges = both;
      energies = all;
      digest("stored rows", again.data(), static_cast<int64_t>(again.size()));
      digest("stored rows", both.data(), static_cast<int64_t>(both.size()));
      digest("stored rows", all.data(), static_cast<int64_t>(all.size()));
    }
    if (again != packed || noise != lost || signal != whole) fail(what + ": " + isa + " differs from a detour by floats");
    if (both != ranges || all != energies) fail(what + ": " + isa + " differs from scalar");
  }
}

void stored_rows() {
  Random random(9);
  int turn = 0;
  for (Values kind : {Values::kFloat32, Values::kFloat16, Values::kBfloat16}) {
    for (int64_t cols : {1, 17, 130, 511, 512, 513, 1100}) {
      for (int64_t group : {int64_t{16}, int64_t{128}, int64_t{1024}, cols}) {
        constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
        check_encoding(random, kind, cols, group, kBits[turn % 6], Offsets(turn % 3));
        ++turn;
      }
    }
  }
  for (const char* isa : isas()) {  // a group that is not finite has no range
    api::choose_isa(isa);
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN()}) {
      for (int64_t at : {0, 511, 512, 1055}) {
        std::vector<float> row(1056, 1.0f), low(66), high(66);
        row[at] = bad;
        api::group_range({row.data(), 1, 1056, Values::kFloat32}, 16, low.data(), high.data());
        int64_t odd = 0;
        for (int64_t n = 0; n < 66; ++n) odd += std::isnan(low[n]) && std::isnan(high[n]);
        api::group_range({row.data(), 1, 1056, Values::kFloat32}, 1056, low.data(), high.data());
        if (odd != 1 || !std::isnan(low[0]) || !std::isnan(high[0])) fail(std::string("ranges that are not finite: ") + isa);
      }
    }
  }
}

// Of 64 times "a", alone and among others, on the ISAs that can do it; tests/test_memory_safety.py holds others to hashlib.
void sha256() {
  constexpr uint8_t kKnown[32] = {0xff, 0xe0, 0x54, 0xfe, 0x7a, 0xe0, 0xcb, 0x6d, 0xc6, 0x5c, 0x3a, 0xf9, 0xb6, 0x1d, 0x52, 0x09,
                                  0xf4, 0x39, 0x85, 0x1d, 0xb4, 0x3d, 0x0b, 0xa5, 0x99, 0x73, 0x37, 0xdf, 0x15, 0x46, 0x68, 0xeb};
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    for (int64_t count = 1; count < 9; ++count) {
      std::vector<uint8_t> data(static_cast<size_t>(64 * count), 'a'), digests(static_cast<size_t>(32 * count));
      if (!api::sha256_pieces(data.data(), count, 64, digests.data())) break;
      for (int64_t n = 0; n < count; ++n) {
        if (std::memcmp(digests.data() + 32 * n, kKnown, 32) != 0) fail(std::string("sha256") + text("count", count) + ": " + isa);
      }
    }
  }
}

// Sums of small integers are exact on every ISA.
template <class T, class Out>
void check_sums(Random& random, int64_t rows, int64_t cols, int64_t depth, bool columns) {
  std::vector<T> a(static_cast<size_t>(rows * depth)), b(static_cast<size_t>(depth * cols));
  for (T& v : a) v = static_cast<T>(random.below(9)) - T(4);
  for (T& v : b) v = static_cast<T>(random.below(9)) - T(4);
  std::vector<Out> expected(static_cast<size_t>(rows * (cols + 1)), Out(7));  // a gap behind each row stays
  const Strided<T> left = columns ? Strided<T>{a.data(), 1, rows} : Strided<T>{a.data(), depth, 1};
  const Strided<T> right = columns ? Strided<T>{b.data(), 1, depth} : Strided<T>{b.data(), cols, 1};
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < cols; ++n) {
      for (int64_t k = 0; k < depth; ++k) {
        expected[static_cast<size_t>(m * (cols + 1) + n)] += left.at[m * left.row + k * left.col] * right.at[k * right.row + n * right.col];
      }
    }
  }
  for (const char* isa : isas()) {
    api::choose_isa(isa);
    std::vector<Out> out(expected.size(), Out(7));
    ++products;
    if (api::add_product(left, right, Strided<Out>{out.data(), cols + 1, 1}, rows, cols, depth) != Status::kOk || out != expected) {
      fail("add_product" + text("bytes", sizeof(T)) + text("rows", rows) + text("cols", cols) + text("depth", depth) + ": " + isa);
    }
  }
}

void sums_of_products() {
  constexpr int64_t kShapes[][3] = {{1, 1, 1}, {12, 32, 16}, {13, 33, 17}, {25, 15, 512}, {11, 70, 1030}, {37, 300, 5}};
  Random random(11);
  for (const auto& [rows, cols, depth] : kShapes) {
    for (bool columns : {false, true}) {
      check_sums<float, float>(random, rows, cols, depth, columns);
      check_sums<float, double>(random, rows, cols, depth, columns);
      check_sums<double, double>(random, rows, cols, depth, columns);
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
  stored_rows();
  sha256();
  quantized_rows();
  dense_ints();
  large_batches();
  dense_halves();
  dense_float8();
  block_sparse();
  tall_blocks();
  bitmasks();
  compressed_rows();
  sums_of_products();
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
