// What this machine offers: instruction sets, and processors to run on.
#pragma once

namespace pumice {

enum class Isa {
  kScalar,  // the compiler's baseline
  kAvx2,    // AVX2, FMA, F16C
  kAvxVnni,  // AVX2 and AVX-VNNI: Alder Lake and Zen 5
  kAvx512,  // F, BW, VL, DQ, VNNI, VBMI, VBMI2: Ice Lake and Zen 4
  kAmx,     // the same with AMX-INT8: Sapphire Rapids
  kNeon,    // AdvSIMD with the dot products of Armv8.2
};

const char* isa_name(Isa isa) noexcept;

// True if the processor has the instructions and the operating system saves their registers.
bool cpu_supports(Isa isa) noexcept;

// Instructions for SHA-256, which x86 processors of any ISA may have.
bool cpu_has_sha256() noexcept;

struct CpuBudget {
  int cpus;    // processors that this process may use at once, at least 1
  bool quota;  // a cgroup limits its time: a thread that spins steals from those that work
};

// From the affinity mask and the CPU quota of cgroup v1 or v2. `root` is put before every path.
CpuBudget cpu_budget(const char* root = "") noexcept;

}  // namespace pumice
