// Preloaded before libc: counts the calls that change a file system, and makes one of them fail, stop short or be the
// process's last. Calls on pipes and sockets are left alone.
//
//   c++ -shared -fPIC -O1 faults.cpp -o faults.so -ldl
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <dlfcn.h>
#include <fcntl.h>

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

}  // namespace

extern "C" {

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
}
