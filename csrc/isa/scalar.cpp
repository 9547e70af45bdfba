#define PUMICE_ISA scalar
#include "simd/scalar.hpp"
#include "kernels/table.inl.hpp"
