#define PUMICE_ISA avx2
#include "simd/avx2.hpp"
#include "kernels/table.inl.hpp"
