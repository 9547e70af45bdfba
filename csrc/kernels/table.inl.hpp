// Included last by isa/<isa>.cpp: all kernels, then the table of this ISA, its only symbol.
#include "kernels/matmul_f32_bitmask.inl.hpp"
#include "kernels/matmul_f32_csr.inl.hpp"
#include "kernels/matmul_f32_half.inl.hpp"
#include "kernels/encode.inl.hpp"
#include "kernels/matmul_f32_int.inl.hpp"
#include "kernels/matmul_int.inl.hpp"
#include "kernels/matmul_int_csr.inl.hpp"
#include "kernels/product_tile.inl.hpp"
#include "kernels/quantize.inl.hpp"
#include "kernels/matmul_f32_bsr.inl.hpp"
#include "kernels/matmul_int_bsr.inl.hpp"
#include "kernels/matmul_int_bsr_row.inl.hpp"
#include "kernels/sha256.inl.hpp"
#include "kernels/table.hpp"

namespace pumice::PUMICE_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
#define KERNEL(name, result, parameters) name,
#include "kernels/kernel_list.inc"
#undef KERNEL
};

}  // namespace pumice::PUMICE_ISA
