#include "dispatch/cpu.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pumice {
namespace {

struct Features {
  bool avx2 = false, avxvnni = false, avx512 = false, amx = false, neon = false, sha256 = false;
};

#if defined(__x86_64__)

bool has(unsigned word, std::initializer_list<int> bits) noexcept {
  for (int bit : bits) {
    if ((word >> bit & 1u) == 0) return false;
  }
  return true;
}

// Linux gives the registers of AMX to a process that asks, once for all its threads. It refuses, for one, where a thread has an
// alternate signal stack that they would not fit on.
bool may_use_tiles() noexcept {
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // arch_prctl(2): ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Bit numbers: Intel SDM volume 2A, CPUID leaf 1 and leaf 7 (subleaves 0 and 1); XCR0: volume 1, section 13.3.
Features detect() noexcept {
  Features features;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
  constexpr int kFma = 12, kOsXsave = 27, kAvx = 28, kF16c = 29;
  if (!has(ecx, {kFma, kOsXsave, kAvx, kF16c})) return features;

  unsigned xcr0, high;
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  constexpr int kXmm = 1, kYmm = 2, kOpmask = 5, kZmmLow = 6, kZmmHigh = 7, kTileConfig = 17, kTileData = 18;
  if (!has(xcr0, {kXmm, kYmm})) return features;

  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  constexpr int kAvx2 = 5, kF = 16, kDq = 17, kSha = 29, kBw = 30, kVl = 31;  // EBX
  constexpr int kVbmi = 1, kVbmi2 = 6, kVnni = 11;                 // ECX
  constexpr int kAmxBf16 = 22, kAmxTile = 24, kAmxInt8 = 25;       // EDX
  features.avx2 = has(ebx, {kAvx2});
  features.sha256 = has(ebx, {kSha});
  features.avx512 = features.avx2 && has(xcr0, {kOpmask, kZmmLow, kZmmHigh}) &&
                    has(ebx, {kF, kDq, kBw, kVl}) && has(ecx, {kVbmi, kVbmi2, kVnni});
  features.amx = features.avx512 && has(xcr0, {kTileConfig, kTileData}) && has(edx, {kAmxBf16, kAmxTile, kAmxInt8}) && may_use_tiles();

  const unsigned last_subleaf = eax;
  constexpr int kAvxVnni = 4;  // EAX
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    features.avxvnni = features.avx2 && has(eax, {kAvxVnni});
  }
  return features;
}

#else

Features detect() noexcept {
  Features features;
#if defined(__aarch64__) && defined(__linux__)
  features.neon = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  features.neon = true;  // every one of them has dot products
#endif
  return features;
}

#endif

// Detected in the first call, which may come from another file's static initializer.
const Features& features() noexcept {
  static const Features found = detect();
  return found;
}

constexpr double kNoQuota = HUGE_VAL;

bool read_line(const char* root, const char* path, const char* name, char* line,
               int size) noexcept {
  char full[1024];
  const int length = std::snprintf(full, sizeof full, "%s%s/%s", root, path, name);
  if (length < 0 || length >= static_cast<int>(sizeof full)) return false;
  std::FILE* file = std::fopen(full, "re");
  if (file == nullptr) return false;
  const bool ok = std::fgets(line, size, file) != nullptr;
  std::fclose(file);
  return ok;
}

// Processors' worth of time that one cgroup directory grants: quota over period, both in us.
double quota_of(const char* root, const char* path) noexcept {
  char line[64];
  double quota, period;
  if (read_line(root, path, "cpu.max", line, sizeof line)) {  // v2: "max 100000", "150000 100000"
    if (std::sscanf(line, "%lf %lf", &quota, &period) != 2) return kNoQuota;
  } else {  // v1: -1 is no quota
    if (!read_line(root, path, "cpu.cfs_quota_us", line, sizeof line)) return kNoQuota;
    if (std::sscanf(line, "%lf", &quota) != 1) return kNoQuota;
    if (!read_line(root, path, "cpu.cfs_period_us", line, sizeof line)) return kNoQuota;
    if (std::sscanf(line, "%lf", &period) != 1) return kNoQuota;
  }
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

// The least quota of `group` and its ancestors. A container often sees its own cgroup as the
// mount's root while /proc names it from the host's: then only the root exists here.
double quota_up_from(const char* root, const char* mount, const char* group) noexcept {
  char path[768];
  const int length = std::snprintf(path, sizeof path, "%s%s", mount, group);
  if (length < 0 || length >= static_cast<int>(sizeof path)) return kNoQuota;
  const size_t stop = std::strlen(mount);
  double least = kNoQuota;
  for (;;) {
    least = std::fmin(least, quota_of(root, path));
    char* slash = std::strrchr(path, '/');
    if (slash == nullptr || static_cast<size_t>(slash - path) < stop) return least;
    *slash = '\0';
  }
}

bool lists_cpu(const char* controllers) noexcept {
  for (const char* word = controllers; word != nullptr; word = std::strchr(word, ',')) {
    word += *word == ',';
    if (std::strncmp(word, "cpu", 3) == 0 && (word[3] == ',' || word[3] == '\0')) return true;
  }
  return false;
}

double cgroup_quota(const char* root) noexcept {
  char path[256];
  std::snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return kNoQuota;
  double least = kNoQuota;
  char line[768];  // "4:cpu,cpuacct:/a/b" (v1) or "0::/a/b" (v2)
  while (std::fgets(line, sizeof line, file) != nullptr) {
    line[std::strcspn(line, "\n")] = '\0';
    char* controllers = std::strchr(line, ':');
    char* group = controllers == nullptr ? nullptr : std::strchr(controllers + 1, ':');
    if (group == nullptr) continue;
    *group++ = '\0';
    ++controllers;
    if (*controllers == '\0') {
      least = std::fmin(least, quota_up_from(root, "/sys/fs/cgroup", group));
    } else if (lists_cpu(controllers)) {
      least = std::fmin(least, quota_up_from(root, "/sys/fs/cgroup/cpu", group));
      least = std::fmin(least, quota_up_from(root, "/sys/fs/cgroup/cpu,cpuacct", group));
    }
  }
  std::fclose(file);
  return least;
}

int affinity_count() noexcept {
#if defined(__linux__)
  // The kernel refuses a mask smaller than its own, which may be larger than a cpu_set_t.
  for (int bits = CPU_SETSIZE; bits <= 1 << 16; bits *= 2) {
    cpu_set_t* mask = CPU_ALLOC(bits);
    if (mask == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(bits);
    const int count = sched_getaffinity(0, size, mask) == 0 ? CPU_COUNT_S(size, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
  }
#endif
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 1;
}

}  // namespace

const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvxVnni:
      return "avxvnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

bool cpu_has_sha256() noexcept { return features().sha256; }

bool cpu_supports(Isa isa) noexcept {
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return features().avx2;
    case Isa::kAvxVnni:
      return features().avxvnni;
    case Isa::kAvx512:
      return features().avx512;
    case Isa::kAmx:
      return features().amx;
    case Isa::kNeon:
      return features().neon;
  }
  return false;
}

CpuBudget cpu_budget(const char* root) noexcept {
  const int cpus = affinity_count();
  const double quota = cgroup_quota(root);
  if (quota >= cpus) return {cpus, quota != kNoQuota};
  return {static_cast<int>(std::fmax(1.0, std::ceil(quota))), true};
}

}  // namespace pumice
