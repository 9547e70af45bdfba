#include "dispatch/table.hpp"

#include <atomic>
#include <cstring>

#include "dispatch/api.hpp"
#include "dispatch/cpu.hpp"

namespace pumice {

#define ISA(name, needs)           \
  namespace name {                 \
  extern const KernelTable kTable; \
  }
#include "dispatch/isa_list.inc"
#undef ISA

namespace {

constexpr int kIsaCount = 0
#define ISA(name, needs) +1
#include "dispatch/isa_list.inc"
#undef ISA
    ;

struct Entry {
  const char* name;
  Isa needs;
  KernelTable table;
};

struct Entries {
  Entry all[kIsaCount] = {
#define ISA(name, needs) {#name, needs, name::kTable},
#include "dispatch/isa_list.inc"
#undef ISA
  };

  // A kernel that an ISA leaves null is that of the next one.
  Entries() noexcept {
    for (int i = kIsaCount - 2; i >= 0; --i) {
#define KERNEL(name, result, parameters) \
  if (!all[i].table.name) all[i].table.name = all[i + 1].table.name;
#include "kernels/kernel_list.inc"
#undef KERNEL
    }
  }
};

// The n-th entry that this machine can run, or null.
const Entry* supported(int n) noexcept {
  static const Entries entries;
  for (const Entry& entry : entries.all) {
    if (cpu_supports(entry.needs) && n-- == 0) return &entry;
  }
  return nullptr;
}

std::atomic<const Entry*>& chosen() noexcept {
  static std::atomic<const Entry*> entry{supported(0)};
  return entry;
}

}  // namespace

const KernelTable& kernels() noexcept { return chosen().load(std::memory_order_acquire)->table; }

namespace api {

int isa_count() noexcept {
  int count = 0;
  while (supported(count)) ++count;
  return count;
}

const char* isa_name_at(int index) noexcept { return supported(index)->name; }
const char* current_isa() noexcept { return chosen().load(std::memory_order_acquire)->name; }

bool choose_isa(const char* name) noexcept {
  for (int i = 0; const Entry* entry = supported(i); ++i) {
    if (std::strcmp(entry->name, name) == 0) {
      chosen().store(entry, std::memory_order_release);
      return true;
    }
  }
  return false;
}

const char* compiler() noexcept {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace api
}  // namespace pumice
