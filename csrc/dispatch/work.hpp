// What the products of all layouts share: scratch memory, jobs for the pool, and what is left to do of y.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "dispatch/parallel.hpp"
#include "views.hpp"

namespace pumice::api {

// Aligned scratch that is freed at the end of the scope; `get` is null if there is no memory.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) noexcept
      : memory_(std::aligned_alloc(64, static_cast<size_t>(ceil_div(std::max<int64_t>(bytes, 1), 64) * 64))) {}
  ~Workspace() { std::free(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint8_t* get() const noexcept { return static_cast<uint8_t*>(memory_); }

 private:
  void* memory_;
};

// Hands out consecutive parts of a workspace, each on a cache line of its own. With a null base it only measures.
class Carver {
 public:
  explicit Carver(uint8_t* base) noexcept : base_(base) {}
  template <class T>
  T* take(int64_t count) noexcept {
    T* at = reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return at;
  }
  int64_t used() const noexcept { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

// Calls body(Range) on the pool: a lambda as a Job.
template <class Body>
void on_pool(int64_t count, int64_t align, int64_t cost_bytes, const Body& body) noexcept {
  parallel_for(
      count, align, cost_bytes, [](void* context, Range range) noexcept { (*static_cast<const Body*>(context))(range); },
      const_cast<Body*>(&body));
}

template <class Body>
void on_pool(const int64_t* prefix, int64_t count, int64_t cost_bytes, const Body& body) noexcept {
  parallel_for(
      prefix, count, 1, cost_bytes,
      [](void* context, Range range) noexcept { (*static_cast<const Body*>(context))(range); },
      const_cast<Body*>(&body));
}

// What is left to do of the rows begin .. end-1 of w for `batch` rows of x from row `first` on: the bias, and NaN where the
// row of x was not finite.
inline void finish_rows(const Operands& io, int64_t rows, const uint8_t* finite, int64_t first, int64_t batch, Range range) noexcept {
  if (!io.bias && !finite) return;
  for (int64_t m = 0; m < batch; ++m) {
    float* y = io.y + (first + m) * rows;
    if (finite && !finite[m]) {
      std::fill(y + range.begin, y + range.end, std::numeric_limits<float>::quiet_NaN());
    } else if (io.bias) {
      for (int64_t n = range.begin; n < range.end; ++n) y[n] += io.bias[n];
    }
  }
}

}  // namespace pumice::api
