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

struct Entry {
  const char* name;
  Isa needs;
  const KernelTable* table;
};

const Entry kEntries[] = {
#define ISA(name, needs) {#name, needs, &name::kTable},
#include "dispatch/isa_list.inc"
#undef ISA
};

// The n-th entry that this machine can run, or null.
const Entry* supported(int n) noexcept {
  for (const Entry& entry : kEntries) {
    if (cpu_supports(entry.needs) && n-- == 0) return &entry;
  }
  return nullptr;
}

std::atomic<const Entry*>& chosen() noexcept {
  static std::atomic<const Entry*> entry{supported(0)};
  return entry;
}

}  // namespace

const KernelTable& kernels() noexcept { return *chosen().load(std::memory_order_acquire)->table; }

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
