#define PUMICE_ISA avx512
#include "simd/avx512.hpp"
#include "kernels/table.inl.hpp"
