// How long a worker of the pool takes to begin, spinning and parked, and whether it begins on the CPU of its caller, which computes
// meanwhile. Compiled and run by threads.py.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include <sched.h>

#include "dispatch/parallel.hpp"

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kLong = 64 << 20;  // bytes: wakes the workers

struct Begin {
  Clock::time_point start = Clock::now();
  std::thread::id caller = std::this_thread::get_id();
  int cpu = sched_getcpu();
  std::atomic<bool> there{false};  // the caller's
  std::atomic<int64_t> ns{0};      // until a worker began
};

// Every chunk lasts until the worker is there, 2 ms at most.
void run(Begin& begin) {
  pumice::parallel_for(
      2, 1, kLong,
      [](void* context, pumice::Range) noexcept {
        auto& self = *static_cast<Begin*>(context);
        const auto since = [&] { return std::chrono::nanoseconds(Clock::now() - self.start).count(); };
        if (std::this_thread::get_id() != self.caller && self.ns == 0) {
          self.there = sched_getcpu() == self.cpu;
          self.ns = since();
        }
        while (self.ns == 0 && since() < 2'000'000) {
        }
      },
      &begin);
}

void report(const char* what, int pause_us) {
  std::vector<int64_t> found;
  int there = 0;
  for (int i = 0; i < 200; ++i) {
    if (pause_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    Begin begin;
    run(begin);
    if (begin.ns != 0) found.push_back(begin.ns);
    there += begin.there;
  }
  std::sort(found.begin(), found.end());
  const size_t n = found.size();
  std::printf("| %s | %.1f | %.1f | %.1f | %d of 200 |\n", what, found[n / 20] / 1e3, found[n / 2] / 1e3,
              found[n - 1 - n / 20] / 1e3, there);
}

}  // namespace

int main() {
  pumice::set_num_threads(2);
  Begin first;
  run(first);
  report("spinning: the last job has just ended", 0);
  report("parked: after a pause of 5 ms", 5000);
  report("parked: after a pause of 50 ms", 50000);
}
