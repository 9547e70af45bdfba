// AVX-512 with a matrix unit for large batches of integers and bfloat16: a kernel that is null here is that of AVX-512.
#define PUMICE_ISA amx
#define PUMICE_ISA_BELOW avx512
#include "simd/amx.hpp"
#include "kernels/matmul_int_matrix.inl.hpp"
#include "kernels/matmul_half_matrix.inl.hpp"

namespace pumice::amx {
namespace {

constexpr KernelTable improved() {
  KernelTable table{};
  table.choose_tiles = choose_tiles;
  table.quantize_tiles = quantize_tiles;
  table.matmul_int = matmul_int;
  table.takes_pieces = takes_pieces;
  table.piece_words = piece_words;
  table.split_rows = split_rows;
  table.matmul_pieces = matmul_pieces;
  return table;
}

}  // namespace

extern const KernelTable kTable;
constexpr KernelTable kTable = improved();

}  // namespace pumice::amx
