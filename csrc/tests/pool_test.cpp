// Self-test of the thread pool. Prints each check that fails.
//
//   g++ -std=c++17 -g -O1 -fsanitize=thread -Icsrc csrc/tests/pool_test.cpp
//       csrc/dispatch/parallel.cpp csrc/dispatch/cpu.cpp -pthread -o pool_test
//   TSAN_OPTIONS=die_after_fork=0 ./pool_test
//
// and the same with -fsanitize=address,undefined. `pool_test --no-fork` leaves out the children: qemu-user 7.2 itself fails
// in one that starts threads.
#include <atomic>
#include <cfenv>
#include <chrono>
#include <ctime>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch/cpu.hpp"
#include "dispatch/parallel.hpp"

namespace {

using namespace pumice;

constexpr int64_t kLong = 64 << 20;  // bytes: wakes every worker
std::atomic<int> failures{0};

void check(bool ok, const char* what, int line) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "pool_test.cpp:%d: %s\n", line, what);
}
#define CHECK(condition) check(condition, #condition, __LINE__)

// Each row is to be visited once; not atomic, so that a sanitizer sees two threads in one row.
struct Visits {
  explicit Visits(int64_t count, int64_t align = 1) : rows(count), align(align) {}
  std::vector<unsigned char> rows;
  int64_t align;
  std::atomic<int> calls{0}, misaligned{0};

  static void visit(void* context, Range range) noexcept {
    auto& self = *static_cast<Visits*>(context);
    const auto count = static_cast<int64_t>(self.rows.size());
    ++self.calls;
    self.misaligned += range.begin % self.align != 0;
    self.misaligned += range.end % self.align != 0 && range.end != count;
    for (int64_t i = range.begin; i < range.end; ++i) ++self.rows[i];
  }

  bool all_once() const {
    for (unsigned char n : rows) {
      if (n != 1) return false;
    }
    return misaligned == 0;
  }
};

bool visits_all_once(int64_t count, int64_t align, int64_t cost_bytes) {
  Visits visits(count, align);
  parallel_for(count, align, cost_bytes, Visits::visit, &visits);
  return visits.all_once();
}

void random_jobs(unsigned seed, int jobs) {
  std::mt19937 random(seed);
  for (int i = 0; i < jobs; ++i) {
    const int64_t count = random() % (random() % 8 == 0 ? 20000 : 100);
    const int64_t align = int64_t{1} << random() % 6;
    const int64_t cost = random() % 3 == 0 ? 1000 : random() % 2 == 0 ? 500'000 : kLong;
    CHECK(visits_all_once(count, align, cost));
    if (random() % 64 == 0) set_num_threads(1 + static_cast<int>(random() % 5));
  }
}

void every_row_of_random_jobs_is_visited_once() { random_jobs(1, 3000); }

void edge_sizes_are_visited_once() {
  for (int64_t count : {0, 1, 15, 16, 17, 31, 33, 1000}) {
    for (int64_t align : {1, 16, 64}) CHECK(visits_all_once(count, align, kLong));
  }
}

void several_threads_may_call_at_once() {
  std::vector<std::thread> callers;
  for (unsigned seed = 10; seed < 14; ++seed) callers.emplace_back(random_jobs, seed, 500);
  for (std::thread& caller : callers) caller.join();
}

void a_job_may_call_the_pool() {
  std::atomic<int64_t> rows{0};
  const Job outer = [](void* context, Range range) noexcept {
    for (int64_t i = range.begin; i < range.end; ++i) {
      CHECK(visits_all_once(100, 16, kLong));
      ++*static_cast<std::atomic<int64_t>*>(context);
    }
  };
  for (int i = 0; i < 20; ++i) parallel_for(100, 1, kLong, outer, &rows);
  CHECK(rows == 2000);
}

void chunks_have_equal_stored_size() {
  constexpr int64_t kRows = 4096;
  std::vector<int64_t> indptr(kRows + 1, 7);  // a slice's indptr need not begin at 0
  for (int64_t i = 0; i < kRows; ++i) indptr[i + 1] = indptr[i] + (i < 64 ? 6400 : 0);
  struct Largest {
    const std::vector<int64_t>& indptr;
    Visits visits;
    std::atomic<int64_t> size{0};
  } largest{indptr, Visits(kRows, 4)};
  const Job job = [](void* context, Range range) noexcept {
    auto& self = *static_cast<Largest*>(context);
    Visits::visit(&self.visits, range);
    const int64_t size = self.indptr[range.end] - self.indptr[range.begin];
    int64_t seen = self.size;
    while (seen < size && !self.size.compare_exchange_weak(seen, size)) {
    }
  };
  set_num_threads(4);
  parallel_for(indptr.data(), kRows, 4, kLong, job, &largest);
  CHECK(largest.visits.all_once());
  CHECK(largest.visits.calls > 16);
  // 32 chunks of 64 * 6400 entries: two heavy rows each, four after rounding to the alignment.
  CHECK(largest.size <= 4 * 6400);
}

// Occupies the thread that runs it until as many threads as wanted have come, or 10 s have passed.
struct Meeting {
  int wanted;
  std::atomic<int> inside{0}, most{0};

  static void attend(void* context, Range) noexcept {
    auto& self = *static_cast<Meeting*>(context);
    const int now = ++self.inside;
    int seen = self.most;
    while (seen < now && !self.most.compare_exchange_weak(seen, now)) {
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (self.most < self.wanted && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    --self.inside;
  }
};

void as_many_threads_work_as_were_set() {
  for (int threads : {4, 2, 3, 1}) {
    set_num_threads(threads);
    CHECK(get_num_threads() == threads);
    Meeting meeting{threads};
    parallel_for(1000, 1, kLong, Meeting::attend, &meeting);
    CHECK(meeting.most == threads);
  }
  set_num_threads(-5);
  CHECK(get_num_threads() == 1);
  set_num_threads(1 << 20);
  CHECK(get_num_threads() == kMaxThreads);
}

#if defined(__SANITIZE_THREAD__)
constexpr int64_t kChildCost = 1000;  // its runtime cannot start threads in such a child
#else
constexpr int64_t kChildCost = kLong;
#endif

// Nobody allocates near the fork: a sanitizer's allocator may be left locked in the child.
void a_forked_child_has_its_own_pool() {
  Visits mine(2000, 16), others(2000, 16);
  const auto visited_once_again = [](Visits& visits, int64_t cost_bytes) {
    std::memset(visits.rows.data(), 0, visits.rows.size());
    parallel_for(2000, visits.align, cost_bytes, Visits::visit, &visits);
    return visits.all_once();
  };
  set_num_threads(4);
  CHECK(visited_once_again(mine, kLong));
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) CHECK(visited_once_again(others, kLong));
  });
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      bool ok = true;
      for (int n = 0; n < 50; ++n) ok = visited_once_again(mine, kChildCost) && ok;
      Meeting meeting{kChildCost == kLong ? 4 : 1};
      parallel_for(1000, 1, kChildCost, Meeting::attend, &meeting);
      _exit(ok && meeting.most == meeting.wanted ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(visited_once_again(mine, kLong));
  }
  stop = true;
  busy.join();
}

void short_jobs_stay_on_the_caller() {
  set_num_threads(4);
  Visits visits(1000);
  parallel_for(1000, 1, 1000, Visits::visit, &visits);
  CHECK(visits.calls == 1);
}

// A job that is too short to wake anybody, and long enough to be shared: the number of threads that did some of it.
int threads_of_a_short_job() {
  struct Seen {
    pthread_t caller = pthread_self();
    std::atomic<bool> other{false};
  } seen;
  const Job job = [](void* context, Range) noexcept {
    auto& self = *static_cast<Seen*>(context);
    if (pthread_equal(pthread_self(), self.caller) == 0) self.other = true;
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(5);
    while (std::chrono::steady_clock::now() < end) {
    }
  };
  parallel_for(1000, 1, 300 << 10, job, &seen);
  return seen.other ? 2 : 1;
}

// Time that the calling thread did not run since `begun` (a job that the system interrupts looks long, and rightly wakes).
std::chrono::nanoseconds interrupted(std::chrono::steady_clock::time_point begun, std::clock_t cpu) {
  const double ran = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;  // of all threads, and the others are parked
  return std::chrono::steady_clock::now() - begun - std::chrono::nanoseconds(static_cast<int64_t>(ran * 1e9));
}

void a_stream_of_short_jobs_wakes_the_workers() {
  set_num_threads(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // they park
  int undisturbed = 0;
  for (int turn = 0; turn < 20 && undisturbed < 2; ++turn) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const auto begun = std::chrono::steady_clock::now();
    const std::clock_t cpu = std::clock();
    bool alone = true;
    for (int job = 0; job < 3; ++job) alone = alone && threads_of_a_short_job() == 1;
    if (interrupted(begun, cpu) < std::chrono::microseconds(20)) {
      CHECK(alone);
      ++undisturbed;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (threads_of_a_short_job() == 1 && std::chrono::steady_clock::now() < end) {
    }
    CHECK(std::chrono::steady_clock::now() < end);
  }
  CHECK(undisturbed > 0);
}

#if defined(__linux__)
// Whoever is parked is woken on a CPU that the caller may use and does not: if it is pinned to one, where it was.
void woken_workers_keep_off_the_callers_cpu() {
  struct Seen {
    pthread_t caller = pthread_self();
    std::atomic<bool> worker{false};
    cpu_set_t cpus{};
  };
  const Job job = [](void* context, Range) noexcept {
    auto& self = *static_cast<Seen*>(context);
    if (pthread_equal(pthread_self(), self.caller) == 0 && !self.worker.exchange(true)) {
      sched_getaffinity(0, sizeof self.cpus, &self.cpus);
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!self.worker && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  };
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof all, &all);
  set_num_threads(2);
  const auto run_after_a_pause = [&](Seen& seen) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const int before = sched_getcpu();
    parallel_for(1000, 1, kLong, job, &seen);
    CHECK(seen.worker);
    return before == sched_getcpu() ? before : -1;
  };
  Seen free;
  const int cpu = run_after_a_pause(free);
  if (cpu < 0 || CPU_COUNT(&all) == 1) return;  // it has moved meanwhile: nothing to tell
  CHECK(!CPU_ISSET(cpu, &free.cpus));
  CHECK(CPU_COUNT(&free.cpus) == CPU_COUNT(&all) - 1);
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
  Seen pinned;
  run_after_a_pause(pinned);
  CHECK(CPU_EQUAL(&pinned.cpus, &free.cpus));
  sched_setaffinity(0, sizeof all, &all);
}
#endif

void workers_leave_signals_to_the_program() {
  set_num_threads(4);
  static pthread_t caller;
  caller = pthread_self();
  static std::atomic<bool> wrong{false};
  Meeting meeting{4};
  const Job job = [](void* context, Range range) noexcept {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    const bool worker = pthread_equal(pthread_self(), caller) == 0;
    if (worker && sigismember(&mask, SIGINT) != 1) wrong = true;
    if (sigismember(&mask, SIGSEGV) != 0) wrong = true;
    if (!worker && sigismember(&mask, SIGINT) != 0) wrong = true;
    Meeting::attend(context, range);
  };
  parallel_for(1000, 1, kLong, job, &meeting);
  CHECK(meeting.most == 4);
  CHECK(!wrong);
}

#if defined(__x86_64__)
// FTZ and DAZ and rounding toward zero, as a -ffast-math library leaves them.
constexpr unsigned kOdd = 0xff80;
unsigned float_environment() { return _mm_getcsr() & ~0x3fu; }  // without the exception flags
void set_odd_float_environment() { _mm_setcsr(kOdd); }
constexpr unsigned kOddSeen = kOdd & ~0x3fu, kDefault = 0x1f80;
#else
unsigned float_environment() { return static_cast<unsigned>(std::fegetround()); }
void set_odd_float_environment() { std::fesetround(FE_TOWARDZERO); }
const unsigned kOddSeen = FE_TOWARDZERO, kDefault = FE_TONEAREST;
#endif

void jobs_see_the_default_float_environment() {
  static std::atomic<bool> wrong{false};
  const Job job = [](void* context, Range range) noexcept {
    if (float_environment() != kDefault) wrong = true;
    if (context != nullptr) Meeting::attend(context, range);
  };
  std::thread([&] {
    set_odd_float_environment();
    set_num_threads(6);  // new workers start here, from an odd environment
    Meeting meeting{6};
    parallel_for(1000, 1, kLong, job, &meeting);
    CHECK(meeting.most == 6);
    CHECK(float_environment() == kOddSeen);
    parallel_for(10, 1, 10, job, nullptr);
    CHECK(float_environment() == kOddSeen);
  }).join();
  CHECK(!wrong);
}

// A directory like that of a container, put before every path that is read.
struct FakeRoot {
  std::string path;
  FakeRoot() {
    char name[] = "/tmp/pool_test_XXXXXX";
    path = mkdtemp(name);
  }
  ~FakeRoot() {
    const std::string command = "rm -rf " + path;
    if (std::system(command.c_str()) != 0) std::perror(path.c_str());
  }
  void write(const std::string& file, const char* text) const {
    const std::string full = path + file;
    for (size_t i = path.size() + 1; (i = full.find('/', i)) != std::string::npos; ++i) {
      mkdir(full.substr(0, i).c_str(), 0700);
    }
    std::FILE* f = std::fopen(full.c_str(), "w");
    CHECK(f != nullptr);
    if (f == nullptr) return;
    std::fputs(text, f);
    std::fclose(f);
  }
};

void cgroup_quotas_limit_the_threads() {
  const int all = cpu_budget().cpus;
  CHECK(all >= 1);
  const FakeRoot none;
  CHECK(cpu_budget(none.path.c_str()).cpus == all && !cpu_budget(none.path.c_str()).quota);

  const FakeRoot v2;
  v2.write("/proc/self/cgroup", "0::/a/b\n");
  v2.write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(!cpu_budget(v2.path.c_str()).quota);
  v2.write("/sys/fs/cgroup/a/cpu.max", "50000 100000\n");  // an ancestor's limit holds as well
  CHECK(cpu_budget(v2.path.c_str()).cpus == 1 && cpu_budget(v2.path.c_str()).quota);

  const FakeRoot v1;
  v1.write("/proc/self/cgroup", "5:cpuset:/x\n4:cpuacct,cpu:/docker/abc\n");
  v1.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  v1.write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(cpu_budget(v1.path.c_str()).cpus == all && !cpu_budget(v1.path.c_str()).quota);
  v1.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "20000\n");
  CHECK(cpu_budget(v1.path.c_str()).cpus == 1 && cpu_budget(v1.path.c_str()).quota);
  v1.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "900000000\n");
  CHECK(cpu_budget(v1.path.c_str()).cpus == all && cpu_budget(v1.path.c_str()).quota);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(cpu_supports(Isa::kScalar));
  CHECK(!cpu_supports(Isa::kAvx512) || cpu_supports(Isa::kAvx2));
  CHECK(std::strcmp(isa_name(Isa::kAvx512), "avx512") == 0);
  CHECK(thread_config_error() == nullptr || std::getenv("PUMICE_NUM_THREADS") != nullptr);
  set_num_threads(4);
  edge_sizes_are_visited_once();
  every_row_of_random_jobs_is_visited_once();
  several_threads_may_call_at_once();
  a_job_may_call_the_pool();
  if (argc < 2 || std::strcmp(argv[1], "--no-fork") != 0) a_forked_child_has_its_own_pool();
  chunks_have_equal_stored_size();
  as_many_threads_work_as_were_set();
  short_jobs_stay_on_the_caller();
  a_stream_of_short_jobs_wakes_the_workers();
#if defined(__linux__)
  woken_workers_keep_off_the_callers_cpu();
#endif
  workers_leave_signals_to_the_program();
  jobs_see_the_default_float_environment();
  cgroup_quotas_limit_the_threads();
  std::printf("pool_test: %d failures\n", failures.load());
  return failures == 0 ? 0 : 1;
}
