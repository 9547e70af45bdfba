// How the kernel self-test holds products: every ISA, form and batch to the same bits, or to a derived bound.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cases.hpp"
#include "dispatch/api.hpp"
#include "dispatch/table.hpp"

namespace cases {

inline const std::vector<int64_t> kBatches = {1, 2, 3, 5, 8, 13};
inline const std::vector<int64_t> kWideBatches = {1, 2, 3, 17, 33, 70};  // of csr, which takes tiles of up to 64 rows of x
inline const std::vector<int64_t> kLargeBatches = {16, 29, 33, 131};  // of panels; from 128 on all segments go to a matrix unit
inline const std::vector<int64_t> kHalfBatches = {1, 2, 3, 5, 8, 13, 16, 33};  // of halves: from 16 on they go to a matrix unit
constexpr int64_t kMostRows = 13;
inline int failures = 0, products = 0;

inline void fail(const std::string& what) {
  ++failures;
  std::fprintf(stderr, "kernel_test: %s\n", what.c_str());
}

inline std::string text(const char* name, int64_t value) { return std::string(" ") + name + "=" + std::to_string(value); }

// The names of the ISAs, scalar first.
inline std::vector<const char*> isas() {
  std::vector<const char*> names;
  for (int i = api::isa_count() - 1; i >= 0; --i) names.push_back(api::isa_name_at(i));
  return names;
}

// FNV-1a, 64 bits, of all results of a family.
struct Digest {
  std::string family;
  uint64_t value = 0xcbf29ce484222325u;
};
inline std::vector<Digest> digests;

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

inline std::vector<float> some_bias(Random& random, int64_t rows) {
  auto bias = filled<float>(rows);
  for (float& v : bias) v = random.value();
  return bias;
}

inline const char* const kModes[] = {"int16", "int8"};

}  // namespace cases
