// The thread pool. A job is published in one atomic word, the gate; whoever finds it open joins,
// takes chunks from one counter and leaves. The caller begins at once, closes the gate when no
// chunk is left, and waits only for those inside: a worker that wakes late costs nothing.
//
//   gate:   bit 63      32 31      17 16       1    0
//              |  number  |  seats  |  inside  | open |
//
//   number  counts jobs, so that a worker knows one that it has seen
//   seats   workers wanted by the job; inside: workers in it, never more than seats
//
// The job's fields change only while the gate is closed and nobody is inside.
#include "dispatch/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <new>
#include <type_traits>

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include "dispatch/cpu.hpp"

namespace pumice {
namespace {

constexpr int64_t kChunksPerThread = 8;         // evens out threads of unequal speed
constexpr int64_t kBytesPerThread = 100 << 10;  // 10 us of reading: below, joining costs more
constexpr int64_t kWakeBytes = 1500 << 10;      // 150 us at 10 GB/s: below, waking costs more
constexpr int64_t kSureBytes = 8 << 20;         // 100 us at 80 GB/s: from here on waking pays; between the two, a clock decides
constexpr int64_t kSpin = 30'000;               // ns that a worker waits for the next job; a stream has no longer gaps
constexpr int64_t kWakeNs = 150'000;            // ns of work, in one job or a stream of short ones, that waking pays for
constexpr int64_t kCallerSpin = 50'000;         // ns that the caller waits for the last worker

constexpr uint64_t kOpen = 1, kInside = 1 << 1, kSeat = 1 << 17, kNumber = uint64_t{1} << 32;
constexpr uint64_t seats_of(uint64_t gate) noexcept { return gate >> 17 & 0x7fff; }
constexpr uint64_t inside_of(uint64_t gate) noexcept { return gate >> 1 & 0xffff; }
constexpr uint64_t number_of(uint64_t gate) noexcept { return gate >> 32; }

// Rounding to nearest and no flush to zero, whatever the calling thread had (-ffast-math libraries
// change it for their whole process); restored at the end.
class DefaultFloat {
 public:
  DefaultFloat() noexcept : saved_(get()) { set(kDefault); }
  ~DefaultFloat() { set(saved_); }
  DefaultFloat(const DefaultFloat&) = delete;
  DefaultFloat& operator=(const DefaultFloat&) = delete;

 private:
#if defined(__x86_64__)
  using Word = unsigned;
  static constexpr Word kDefault = 0x1f80;  // MXCSR at reset: every exception masked
  static Word get() noexcept { return __builtin_ia32_stmxcsr(); }
  static void set(Word word) noexcept { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kDefault = 0;  // FPCR at reset
  static Word get() noexcept {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) noexcept { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
#error "pumice: expected x86-64 or arm64"
#endif
  Word saved_;
};

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

int64_t now_ns() noexcept {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

// Waits until done() or for limit() ns. The clock is read now and then: it costs more than a look. No sched_yield: it
// pleased other libraries' threads, but in bench/wake.cpp the next wake took 770 us instead of 9 (a virtual machine, Linux 6.18).
template <class Done, class Limit>
bool spin_until(Done done, Limit limit) noexcept {
  constexpr int kLooks = 32;
  const int64_t start = now_ns();
  do {
    for (int i = 0; i < kLooks; ++i) {
      if (done()) return true;
      pause();
    }
  } while (now_ns() - start < limit());
  return false;
}

// A job and how it is cut.
struct Work {
  Job job = nullptr;
  void* context = nullptr;
  const int64_t* prefix = nullptr;  // null: rows of equal size
  int64_t count = 0, align = 1, chunks = 1;

  // A row counts one more than its entries, so that rows without any are shared out too.
  int64_t size_before(int64_t row) const noexcept { return prefix[row] - prefix[0] + row; }

  int64_t boundary(int64_t chunk) const noexcept {
    if (chunk == 0) return 0;
    if (chunk == chunks) return count;
    const int64_t units = (count + align - 1) / align;
    const int64_t total = prefix == nullptr ? units : size_before(count);
    const int64_t target = total / chunks * chunk + total % chunks * chunk / chunks;
    if (prefix == nullptr) return std::min(target * align, count);
    int64_t low = 0, high = units;  // the first unit that does not begin before the target
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (size_before(middle * align) < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return std::min(low * align, count);
  }

  void run(int64_t first, int64_t last) const noexcept {  // chunks
    const Range range{boundary(first), boundary(last)};
    if (range.begin < range.end) job(context, range);
  }
};

// Static, and nothing to destroy: at exit the workers stay where they are.
struct Pool {
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<int64_t> next_chunk{0};
  Work work;
  alignas(64) std::atomic<bool> busy{false};  // held by the caller whose job runs
  std::atomic<bool> caller_waits{false};
  std::atomic<int> parked{0};
  std::atomic<int64_t> spin_ns{0};
  std::atomic<int64_t> alone_ns{0};  // of the short jobs since the stream began that ran on their callers alone
  std::atomic<int64_t> last_end{0};  // when the last job ended
  std::atomic<int> in_a_row{0};  // jobs that began within kSpin after another
  std::atomic<int> started{0};  // workers; changed by the holder of `busy`, as what follows
  pthread_t threads[kMaxThreads - 1];
  int avoided = -1;  // the CPU that the workers keep off
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t job_opened = PTHREAD_COND_INITIALIZER;
  pthread_cond_t all_left = PTHREAD_COND_INITIALIZER;
};
static_assert(std::is_trivially_destructible_v<Pool>);

Pool pool;

void run_chunks() noexcept {
  const Work& work = pool.work;
  for (;;) {
    const int64_t chunk = pool.next_chunk.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= work.chunks) return;
    work.run(chunk, chunk + 1);
  }
}

// `parked` and `caller_waits` are raised before their owner looks at the gate a last time, and read
// after the gate has changed. All four are sequentially consistent: one side sees the other.

uint64_t wait_for_job(uint64_t seen) noexcept {
  const auto opened = [seen] { return number_of(pool.gate.load()) != seen; };
  if (!spin_until(opened, [] { return pool.spin_ns.load(std::memory_order_relaxed); })) {
    pthread_mutex_lock(&pool.mutex);
    pool.parked.fetch_add(1);
    while (!opened()) pthread_cond_wait(&pool.job_opened, &pool.mutex);
    pool.parked.fetch_sub(1);
    pthread_mutex_unlock(&pool.mutex);
  }
  return pool.gate.load();
}

bool join(uint64_t gate) noexcept {
  const uint64_t number = number_of(gate);
  while ((gate & kOpen) != 0 && number_of(gate) == number && inside_of(gate) < seats_of(gate)) {
    if (pool.gate.compare_exchange_weak(gate, gate + kInside)) return true;
  }
  return false;
}

void leave() noexcept {
  const uint64_t gate = pool.gate.fetch_sub(kInside) - kInside;
  if (inside_of(gate) != 0 || (gate & kOpen) != 0 || !pool.caller_waits.load()) return;
  pthread_mutex_lock(&pool.mutex);
  pthread_cond_signal(&pool.all_left);
  pthread_mutex_unlock(&pool.mutex);
}

void* work_forever(void*) noexcept {
  const DefaultFloat environment;
  for (uint64_t seen = 0;;) {
    const uint64_t gate = wait_for_job(seen);
    seen = number_of(gate);
    if (join(gate)) {
      run_chunks();
      leave();
    }
  }
  return nullptr;
}

// Workers take no signal of the program's; those that a fault raises stay open for crash handlers.
void start_workers(int wanted) noexcept {
  if (pool.started >= wanted) return;
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  for (pthread_t thread; pool.started < wanted; ++pool.started) {
    if (pthread_create(&thread, nullptr, work_forever, nullptr) != 0) break;
    pthread_detach(thread);
    pool.threads[pool.started] = thread;
    pool.avoided = -1;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void open_gate(int seats, int64_t first_chunk) noexcept {
  pool.next_chunk.store(first_chunk, std::memory_order_relaxed);
  const uint64_t number = (number_of(pool.gate.load()) + 1) * kNumber;
  pool.gate.store(number | static_cast<uint64_t>(seats) * kSeat | kOpen);
}

// Linux may put a woken thread on the CPU of the thread that wakes it, though others are idle (bench/wake.cpp): the worker then
// takes the caller's time instead of adding its own. So before they are woken, the workers get the CPUs that the caller may use,
// less the one where it runs: system calls only when that is another than last time, and none where CPUs are fewer than threads.
void keep_off_my_cpu([[maybe_unused]] int wanted) noexcept {
#if defined(__linux__)
  const int cpu = sched_getcpu();
  cpu_set_t others;
  if (cpu == pool.avoided || cpu < 0 || sched_getaffinity(0, sizeof others, &others) != 0) return;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) < wanted) return;
  for (int i = 0; i < pool.started; ++i) pthread_setaffinity_np(pool.threads[i], sizeof others, &others);
  pool.avoided = cpu;
#endif
}

void wake(int wanted) noexcept {
  const int parked = pool.parked.load();
  if (parked == 0) return;
  keep_off_my_cpu(wanted);
  pthread_mutex_lock(&pool.mutex);
  if (wanted >= parked) {
    pthread_cond_broadcast(&pool.job_opened);
  } else {
    for (int i = 0; i < wanted; ++i) pthread_cond_signal(&pool.job_opened);
  }
  pthread_mutex_unlock(&pool.mutex);
}

void close_gate() noexcept {
  pool.gate.fetch_and(~kOpen);
  const auto empty = [] { return inside_of(pool.gate.load()) == 0; };
  if (spin_until(empty, [] { return kCallerSpin; })) return;
  pthread_mutex_lock(&pool.mutex);
  pool.caller_waits.store(true);
  while (!empty()) pthread_cond_wait(&pool.all_left, &pool.mutex);
  pool.caller_waits.store(false);
  pthread_mutex_unlock(&pool.mutex);
}

// A forked child has none of the workers, and locks that nobody will release: it begins anew.
void forget_pool() noexcept { new (&pool) Pool; }

struct Config {
  CpuBudget budget;
  std::atomic<int> threads;
  char error[160] = "";

  Config() noexcept : budget(cpu_budget()), threads(std::min(budget.cpus, kMaxThreads)) {
    pthread_atfork(nullptr, nullptr, forget_pool);
    const char* text = std::getenv("PUMICE_NUM_THREADS");
    if (text == nullptr || *text == '\0') return;
    char* end = nullptr;
    errno = 0;
    const long n = std::strtol(text, &end, 10);
    if (*text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && n >= 1 && n <= kMaxThreads) {
      threads = static_cast<int>(n);
      return;
    }
    const int length =
        std::snprintf(error, sizeof error,
                      "PUMICE_NUM_THREADS: expected an integer from 1 to %d, got '%.64s'",
                      kMaxThreads, text);
    for (int i = 0; i < length; ++i) {  // the message stays ASCII
      if (error[i] < ' ' || error[i] > '~') error[i] = '?';
    }
  }
};

Config& config() noexcept {
  static Config found;
  return found;
}

// Read while the library is loaded, so that no thread is in there when the process forks.
[[maybe_unused]] const Config& at_load = config();

int threads_worth(int64_t cost_bytes) noexcept {
  const int64_t worth = std::max<int64_t>(cost_bytes / kBytesPerThread, 1);
  return static_cast<int>(std::min<int64_t>(worth, get_num_threads()));
}

// Afterwards the workers spin only in the midst of a stream (a product may be two jobs, the first of which quantizes x): in turns
// with other libraries' products they would be in those' way.
void run_in_pool(const Work& work, int threads, int64_t first_chunk, bool wakes) noexcept {
  const bool stream = pool.in_a_row.load(std::memory_order_relaxed) >= 2;
  if (wakes) start_workers(threads - 1);
  pool.work = work;
  open_gate(threads - 1, first_chunk);
  if (wakes) wake(threads - 1);
  run_chunks();
  close_gate();
  pool.last_end.store(now_ns(), std::memory_order_relaxed);
  const bool may_spin = stream && !config().budget.quota && get_num_threads() <= config().budget.cpus;
  pool.spin_ns.store(may_spin ? kSpin : 0, std::memory_order_relaxed);
}

// Runs a job that may be too short to wake workers for, and returns how many of its chunks: all, or two, if the second took so
// long that waking pays, or none, if it belongs to a stream of short jobs that have cost as much as waking does: at worst all of them
// together take twice the time of the better choice.
int64_t run_alone(const Work& work, int64_t cost_bytes, int64_t start) noexcept {
  const bool stream = pool.in_a_row.load(std::memory_order_relaxed) > 0;
  const int64_t spent = stream ? pool.alone_ns.load(std::memory_order_relaxed) : 0;
  if (spent >= kWakeNs) {
    pool.alone_ns.store(0, std::memory_order_relaxed);
    return 0;
  }
  int64_t done = 0;
  if (cost_bytes >= kWakeBytes) {
    work.run(0, 1);  // it may have to fetch code and tables: the second tells more
    const int64_t before = now_ns();
    work.run(1, 2);
    done = 2;
    if ((now_ns() - before) * (work.chunks - done) >= kWakeNs) return done;
  }
  work.run(done, work.chunks);
  const int64_t end = now_ns();
  pool.alone_ns.store(spent + end - start, std::memory_order_relaxed);
  pool.last_end.store(end, std::memory_order_relaxed);
  return work.chunks;
}

void run_work(Work& work, int64_t cost_bytes) noexcept {
  if (work.count <= 0) return;
  const DefaultFloat environment;
  const int threads = threads_worth(cost_bytes);
  const int64_t units = (work.count - 1) / work.align + 1;
  if (threads == 1 || units == 1) return work.run(0, work.chunks);
  work.chunks = std::min(units, threads * kChunksPerThread);
  const int64_t start = now_ns();
  const bool soon = start - pool.last_end.load(std::memory_order_relaxed) <= kSpin;
  pool.in_a_row.store(soon ? std::min(pool.in_a_row.load(std::memory_order_relaxed) + 1, 2) : 0, std::memory_order_relaxed);
  int64_t done = 0;
  bool wakes = cost_bytes >= kWakeBytes;
  const bool asleep = pool.parked.load() >= pool.started.load(std::memory_order_relaxed);
  if (asleep && cost_bytes < kSureBytes) {
    done = run_alone(work, cost_bytes, start);
    if (done == work.chunks) return;
    wakes = true;
  }
  if (pool.busy.exchange(true)) return work.run(done, work.chunks);
  run_in_pool(work, threads, done, wakes);
  pool.busy.store(false);
}

}  // namespace

void parallel_for(int64_t count, int64_t align, int64_t cost_bytes, Job job,
                  void* context) noexcept {
  Work work{job, context, nullptr, count, align, 1};
  run_work(work, cost_bytes);
}

void parallel_for(const int64_t* prefix, int64_t count, int64_t align, int64_t cost_bytes, Job job,
                  void* context) noexcept {
  Work work{job, context, prefix, count, align, 1};
  run_work(work, cost_bytes);
}

int get_num_threads() noexcept { return config().threads.load(std::memory_order_relaxed); }

void set_num_threads(int n) noexcept {
  config().threads.store(std::clamp(n, 1, kMaxThreads), std::memory_order_relaxed);
}

const char* thread_config_error() noexcept {
  return *config().error == '\0' ? nullptr : config().error;
}

}  // namespace pumice

int pumice_get_num_threads() noexcept { return pumice::get_num_threads(); }
void pumice_set_num_threads(int n) noexcept { pumice::set_num_threads(n); }
