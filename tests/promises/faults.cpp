// Preloaded before libc. Counts the calls that change a file system, and makes one of them fail, stop short or be the
// process's last; calls on pipes and sockets are left alone. Or counts allocations, and makes one of them fail. Or lets
// no thread start.
//
//   c++ -shared -fPIC -O1 faults.cpp -o faults.so -ldl
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

namespace {

enum Action { kCount, kFail, kShort, kKillBefore, kKillAfter };

std::atomic<long> calls{0}, target{-1};
std::atomic<int> action{kCount}, error{0};
std::atomic<bool> armed{false}, lasting{false};

template <typename Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}
#define REAL(name) real<decltype(&name)>(#name)

bool is_file(int fd) {
  struct stat status;
  return fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

// Whether this call is the one; a failure that lasts, such as a full disk's, also meets those after it.
bool due() {
  if (!armed) return false;
  const long call = calls++;
  return call == target || (lasting && action == kFail && call > target);
}

template <typename Call>
auto faulty(Call call) -> decltype(call()) {
  if (!due()) return call();
  if (action == kFail) {
    errno = error;
    return -1;
  }
  if (action == kKillBefore) kill(getpid(), SIGKILL);
  const auto result = call();
  if (action == kKillAfter) kill(getpid(), SIGKILL);
  return result;
}

std::atomic<long> allocations{0}, failing{-1};
std::atomic<size_t> smallest{0};  // 0: allocations are not watched
std::atomic<bool> all_after{false}, threadless{false};
std::atomic<int> refused_threads{0};

bool asked_by_pumice(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) && std::strstr(info.dli_fname, "pumice/_core/native");
}

bool no_memory(size_t size, void* caller) {
  if (smallest == 0 || (size < smallest && !asked_by_pumice(caller))) return false;
  const long allocation = allocations++;
  const bool fails = allocation == failing || (all_after && failing >= 0 && allocation > failing);
  if (fails) errno = ENOMEM;
  return fails;
}

}  // namespace

extern "C" {

// glibc's own names for its allocator: dlsym would allocate.
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void faults_arm(long nth, int what, int code, int lasts) {
  calls = 0;
  target = nth;
  action = what;
  error = code;
  lasting = lasts;
  armed = true;
}

long faults_disarm() {
  armed = false;
  return calls;
}

ssize_t write(int fd, const void* data, size_t size) {
  if (!is_file(fd)) return REAL(write)(fd, data, size);
  return faulty([&] { return REAL(write)(fd, data, action == kShort && size > 1 && calls - 1 == target ? size / 2 : size); });
}

ssize_t copy_file_range(int from, off64_t* begin, int to, off64_t* end, size_t size, unsigned flags) {
  return faulty([&] {
    const bool cut = action == kShort && size > 1 && calls - 1 == target;
    return REAL(copy_file_range)(from, begin, to, end, cut ? size / 2 : size, flags);
  });
}

int fsync(int fd) {
  return faulty([&] { return REAL(fsync)(fd); });
}

int rename(const char* from, const char* to) {
  return faulty([&] { return REAL(rename)(from, to); });
}

int unlink(const char* path) {
  return faulty([&] { return REAL(unlink)(path); });
}

int rmdir(const char* path) {
  return faulty([&] { return REAL(rmdir)(path); });
}

int mkdir(const char* path, mode_t mode) {
  return faulty([&] { return REAL(mkdir)(path, mode); });
}

static bool changes(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR); }

static mode_t mode_of(int flags, va_list& rest) {
  return flags & (O_CREAT | __O_TMPFILE) ? static_cast<mode_t>(va_arg(rest, int)) : 0;
}

#define OPEN(name)                                                  \
  int name(const char* path, int flags, ...) {                      \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    const mode_t mode = mode_of(flags, rest);                       \
    va_end(rest);                                                   \
    if (!changes(flags)) return REAL(name)(path, flags, mode);      \
    return faulty([&] { return REAL(name)(path, flags, mode); });   \
  }
OPEN(open)
OPEN(open64)

void faults_arm_memory(long nth, size_t at_least, int lasts) {
  allocations = 0;
  failing = nth;
  all_after = lasts;
  smallest = at_least;
}

long faults_disarm_memory() {
  smallest = 0;
  return allocations;
}

void* malloc(size_t size) { return no_memory(size, __builtin_return_address(0)) ? nullptr : __libc_malloc(size); }

void* calloc(size_t count, size_t size) { return no_memory(count * size, __builtin_return_address(0)) ? nullptr : __libc_calloc(count, size); }

void* realloc(void* memory, size_t size) { return no_memory(size, __builtin_return_address(0)) ? nullptr : __libc_realloc(memory, size); }

void* aligned_alloc(size_t alignment, size_t size) {
  return no_memory(size, __builtin_return_address(0)) ? nullptr : __libc_memalign(alignment, size);
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (no_memory(size, __builtin_return_address(0))) return ENOMEM;
  *memory = __libc_memalign(alignment, size);
  return *memory ? 0 : ENOMEM;
}

#define MMAP(name, offset_type)                                                                 \
  void* name(void* at, size_t size, int protection, int flags, int fd, offset_type offset) {    \
    return no_memory(size, __builtin_return_address(0)) ? MAP_FAILED : REAL(name)(at, size, protection, flags, fd, offset); \
  }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

int faults_arm_threads(int none) {
  threadless = none;
  return refused_threads;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  if (threadless) {
    ++refused_threads;
    return EAGAIN;
  }
  return REAL(pthread_create)(thread, attributes, start, argument);
}
}
