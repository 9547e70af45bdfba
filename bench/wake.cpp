// How long a worker of the pool takes to begin: parked, and still spinning. Compiled and run by threads.py.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "dispatch/parallel.hpp"

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kLong = 64 << 20;  // bytes: wakes the workers

struct Begin {
  Clock::time_point start = Clock::now();
  std::thread::id caller = std::this_thread::get_id();
  std::atomic<int64_t> ns{0};  // until a worker began
};

// ns until the worker was there; every chunk lasts until it is, 2 ms at most.
int64_t once() {
  Begin begin;
  pumice::parallel_for(
      2, 1, kLong,
      [](void* context, pumice::Range) noexcept {
        auto& self = *static_cast<Begin*>(context);
        const auto since = [&] { return std::chrono::nanoseconds(Clock::now() - self.start).count(); };
        if (std::this_thread::get_id() != self.caller) self.ns = since();
        while (self.ns == 0 && since() < 2'000'000) {
        }
      },
      &begin);
  return begin.ns;
}

void report(const char* what, int pause_us) {
  std::vector<int64_t> found;
  for (int i = 0; i < 200; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    if (const int64_t ns = once()) found.push_back(ns);
  }
  std::sort(found.begin(), found.end());
  const size_t n = found.size();
  std::printf("| %s | %.1f | %.1f | %.1f |\n", what, found[n / 20] / 1e3, found[n / 2] / 1e3, found[n - 1 - n / 20] / 1e3);
}

}  // namespace

int main() {
  pumice::set_num_threads(2);
  once();
  report("spinning: the last job has just ended", 0);
  report("parked: after a pause of 5 ms", 5000);
}
