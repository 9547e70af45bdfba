// The one place with threads: a process-wide pool that cuts the rows of a product in chunks.
#pragma once

#include <cstdint>

namespace pumice {

struct Range {
  int64_t begin, end;
};

// Called from several threads at once, each time with another part of the rows, in the default
// floating-point environment (round to nearest, no flush to zero).
using Job = void (*)(void* context, Range range) noexcept;

// Runs `job` over [0, count) and returns when all of it is done.
//   align       chunk boundaries are multiples of it (16 for panels of 16 rows), at least 1
//   cost_bytes  estimate of the bytes that the whole job reads; short jobs run on the caller alone.
//               It stands for time, 10 bytes a ns: a job that computes longer than that adds some
// A call from inside a job, or while another thread's job runs, is run by the caller alone.
void parallel_for(int64_t count, int64_t align, int64_t cost_bytes, Job job,
                  void* context) noexcept;

// The same, with chunks of equal stored size instead of equal count. `prefix` has count + 1 rising
// entries, of which row i owns prefix[i] to prefix[i + 1]: an indptr as it is.
void parallel_for(const int64_t* prefix, int64_t count, int64_t align, int64_t cost_bytes, Job job,
                  void* context) noexcept;

constexpr int kMaxThreads = 1024;

// Threads of a product, the caller included. At load: PUMICE_NUM_THREADS, else what the affinity
// mask and the cgroup quota leave. `set_num_threads` clips n to [1, kMaxThreads].
int get_num_threads() noexcept;
void set_num_threads(int n) noexcept;

// What is wrong with PUMICE_NUM_THREADS (which is then not followed), or nullptr.
const char* thread_config_error() noexcept;

}  // namespace pumice

// For threadpoolctl, which finds thread pools by their C symbols.
extern "C" {
__attribute__((visibility("default"))) int pumice_get_num_threads() noexcept;
__attribute__((visibility("default"))) void pumice_set_num_threads(int n) noexcept;
}
