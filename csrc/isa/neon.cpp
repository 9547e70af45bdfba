#define PUMICE_ISA neon
#include "simd/neon.hpp"
#include "kernels/table.inl.hpp"
