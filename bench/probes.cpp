// Plain loops that show what a machine reads and computes at most. Compiled by probes.py for the CPU it runs on.
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
#define OPAQUE(v) asm volatile("" : "+x"(v))  // so that no step is folded into another
#else
#define OPAQUE(v) asm volatile("" : "+w"(v))
#endif

// Independent accumulators, more than latency times throughput of any unit here; named ones, since GCC leaves an array
// of them in memory, and with values of their own, since of equal ones it computes one.
#define EACH_CHAIN(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)

namespace {
constexpr int kChains = 12;
volatile double sink;
}  // namespace

// Reads n words; n is a multiple of 8.
extern "C" uint64_t read_all(const uint64_t* p, long n, int threads) {
  uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
  for (long i = 0; i < n; i += 8) {
    __builtin_prefetch(p + i + 512);
    sum += p[i] + p[i + 1] + p[i + 2] + p[i + 3] + p[i + 4] + p[i + 5] + p[i + 6] + p[i + 7];
  }
  return sum;
}

// Both peaks return the operations of one step of all threads, multiplications and additions apart; 0 where there is
// no such loop.

extern "C" double float32_peak(long steps, int threads) {
#if defined(__AVX512F__)
  typedef float vec __attribute__((vector_size(64)));
#else
  typedef float vec __attribute__((vector_size(32)));
#endif
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    vec a = {}, b = {};
#define DECLARE(i) vec acc##i = vec{} + float(i);
    EACH_CHAIN(DECLARE)
#undef DECLARE
    for (int i = 0; i < int(sizeof(vec) / 4); i++) a[i] = 0.5f + 0.001f * i, b[i] = 0.25f;
    for (long s = 0; s < steps; s++) {
      OPAQUE(a);
      OPAQUE(b);
#define STEP(i) acc##i = acc##i * a + b;
      EACH_CHAIN(STEP)
#undef STEP
    }
#define ADD(i) total += acc##i[0];
    EACH_CHAIN(ADD)
#undef ADD
  }
  sink = total;
  return 2.0 * kChains * double(sizeof(vec) / 4) * threads;
}

#if defined(__AVX512VNNI__)
typedef __m512i ivec;
static inline ivec step8(ivec acc, ivec a, ivec b) {  // not the intrinsic, whose sums GCC 12 copies
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}
#elif defined(__AVXVNNI__)
typedef __m256i ivec;
static inline ivec step8(ivec acc, ivec a, ivec b) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  return acc;
}
#elif defined(__AVX2__)
typedef __m256i ivec;
static inline ivec step8(ivec acc, ivec a, ivec b) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#endif

#if defined(__AMX_INT8__)
// A matrix unit's loop, of one turn for kSteps steps: a turn of it takes that much longer.
namespace {
constexpr int kSteps = 16, kSums = 6, kRows = 16, kTile = 64 * kRows;
constexpr double kTurn = 2.0 * kSums * kRows * kTile;

bool tiles_are_allowed() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // asm/prctl.h: ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

void tile_peak(long steps, int threads) {
#pragma omp parallel num_threads(threads)
  {
    struct alignas(64) {
      uint8_t palette = 1, reserved[15] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
    } shapes;
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    asm volatile("tilezero %tmm6\n tilezero %tmm7");
#define ZERO(i) asm volatile("tilezero %tmm" #i);
    ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5)
#undef ZERO
    for (long s = 0; s < steps; s += kSteps) {
#define STEP(i) asm volatile("tdpbssd %tmm7, %tmm6, %tmm" #i);
      STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5)
#undef STEP
    }
    asm volatile("tilerelease");
  }
}
}  // namespace
#endif

extern "C" double int8_peak(long steps, int threads) {
#if defined(__AMX_INT8__)
  if (tiles_are_allowed()) {
    tile_peak(steps, threads);
    return kTurn / kSteps * threads;
  }
#endif
#if defined(__AVX2__)
  long total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    ivec a, b;
    __builtin_memset(&a, 3, sizeof a);
    __builtin_memset(&b, 2, sizeof b);
#define DECLARE(i) ivec acc##i = ivec{} + i;
    EACH_CHAIN(DECLARE)
#undef DECLARE
    for (long s = 0; s < steps; s++) {
      OPAQUE(a);
      OPAQUE(b);
#define STEP(i) acc##i = step8(acc##i, a, b);
      EACH_CHAIN(STEP)
#undef STEP
    }
#define ADD(i) total += long(acc##i[0]);
    EACH_CHAIN(ADD)
#undef ADD
  }
  sink = double(total);
  return 2.0 * kChains * double(sizeof(ivec)) * threads;
#else
  (void)steps, (void)threads;
  return 0;
#endif
}
