#define PUMICE_ISA avxvnni
#include "simd/avxvnni.hpp"
#include "kernels/table.inl.hpp"
