"""The C++ core as Cython sees it: declarations of csrc/dispatch/api.hpp, nothing else."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t


cdef extern from "views.hpp" namespace "pumice" nogil:
    int64_t panel_words(int64_t cols, int bits)

    cdef enum class Activations(int):
        kInt16
        kInt8
        kFloat32

    cdef enum class Values(int):
        kFloat32
        kFloat16
        kBfloat16
        kInt8
        kInt4

    cdef struct DenseInt:
        const uint8_t* codes
        const void* scales
        const uint8_t* zeros
        int64_t rows
        int64_t cols
        int64_t group
        int bits
        int32_t zero
        uint8_t flip
        bint half_scales
        bint prepacked
        const void* minima

    cdef cppclass Strided[T]:
        T* at
        int64_t row
        int64_t col

    cdef struct StoredMatrix:
        const void* values
        int64_t rows
        int64_t cols
        Values kind

    cdef struct Grid:
        const float* scales
        const uint8_t* zeros
        const float* minima
        int64_t groups
        int bits

    cdef struct MaskedInt:
        DenseInt dense
        const uint64_t* masks
        const uint8_t* data
        const int64_t* offsets
        int bits

    cdef struct Bitmask:
        const uint8_t* bitmask
        const void* data
        const int64_t* offsets
        int64_t rows
        int64_t cols
        Values values

    cdef struct DenseHalf:
        const uint16_t* bits
        int64_t rows
        int64_t cols
        bint bfloat16

    cdef struct DenseFloat8:
        const uint8_t* codes
        const float* scales
        int64_t rows
        int64_t cols
        int64_t group

    cdef struct BlockSparse:
        const int64_t* indptr
        const void* indices
        const void* data
        const float* scales
        int64_t rows
        int64_t cols
        int64_t blockrows
        int64_t blockcols
        bint wide_indices
        Values values

    cdef struct CompressedRows:
        const int64_t* indptr
        const void* indices
        const void* data
        const int64_t* starts
        const float* scales
        const uint8_t* runs
        int64_t rows
        int64_t cols
        Values values
        bint wide_indices

    cdef struct Operands:
        const float* x
        float* y
        const float* bias
        int64_t batch


cdef extern from "status.hpp" namespace "pumice" nogil:
    cdef enum class Status(int):
        kOk
        kNoMemory
        kBadArgument


cdef extern from "formats/integer.hpp" namespace "pumice::formats" nogil:
    cdef struct Groups:
        int64_t cols
        int64_t group
        int64_t groups
        int bits

    int64_t row_bytes(int64_t cols, int bits)
    int64_t pack(const uint8_t* codes, int64_t cols, int bits, int64_t begin, int64_t end, uint8_t* packed)


cdef extern from "formats/compressed.hpp" namespace "pumice::formats" nogil:
    cdef struct RowBuffers:
        void* indices
        void* data


cdef extern from "algorithms/compensation.hpp" namespace "pumice::algorithms" nogil:
    int64_t kMostColumns

    cdef struct Block:
        const float* w
        float* drift
        float* errors
        int64_t stride
        int64_t width
        int64_t start
        int64_t stop
        const float* factor
        const float* variance
        const uint8_t* keep
        const Grid* grid
        const int32_t* group_of
        double* loss
cdef extern from "formats/stored_codes.hpp" namespace "pumice::formats" nogil:
    cdef struct FloatRows:
        const float* w
        const float* scales
        int64_t rows
        Groups g


cdef extern from "dispatch/parallel.hpp" namespace "pumice" nogil:
    int get_num_threads()
    void set_num_threads(int n)
    const char* thread_config_error()


cdef extern from "dispatch/api.hpp" namespace "pumice::api" nogil:
    cdef struct Fault:
        int rule
        int64_t row

    int isa_count()
    const char* isa_name_at(int index)
    const char* current_isa()
    bint choose_isa(const char* name)
    const char* compiler()
    int64_t first_nonfinite(const float* values, int64_t count)
    void group_range(const StoredMatrix& w, int64_t group, float* low, float* high)
    void encode(const StoredMatrix& w, const Grid& grid, int64_t group, uint8_t* packed, double* noise, double* signal)
    void row_energies(const float* exact, const float* decoded, int64_t rows, int64_t cols, double* noise, double* signal)
    void decode(const uint8_t* packed, const Grid& grid, int64_t group, int64_t rows, int64_t cols, uint8_t flip, float* w)
    bint sha256_pieces(const uint8_t* data, int64_t count, int64_t length, uint8_t* digests)
    void unpack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* codes)
    void prepack(const uint8_t* packed, int64_t rows, int64_t cols, int bits, uint8_t* panels)
    void unprepack(const uint8_t* panels, const int64_t* ids, int64_t count, int64_t cols, int bits, uint8_t* packed)
    int64_t encode_halves(const float* values, bint bfloat16, int64_t count, uint16_t* bits)
    void decode_halves(const uint16_t* bits, bint bfloat16, int64_t count, float* values)
    Status matmul_dense_int(const DenseInt& w, const Operands& io, Activations mode)
    Status matmul_dense_half(const DenseHalf& w, const Operands& io)
    Status matmul_dense_float8(const DenseFloat8& w, const Operands& io)
    void find_places(const void* values, Values type, int64_t rows, int64_t cols, int kept, int of, uint8_t* bitmask,
                     int64_t* counts)
    void count_places(const uint8_t* bitmask, int64_t rows, int64_t cols, int kept, int of, int64_t* counts)
    void gather(const void* values, const Bitmask& w, void* data)
    void fill_bitmask_codes(const FloatRows& m, const int64_t* offsets, uint8_t* bitmask, uint8_t* data, int64_t* counts)
    void scatter(const Bitmask& w, int64_t begin, int64_t end, int64_t stride, void* out)
    void panel_masks(const Bitmask& w, uint64_t* masks, int64_t* sizes)
    Status panel_data(const Bitmask& w, const uint64_t* masks, const int64_t* offsets, uint8_t* data)
    void row_masks(const uint64_t* masks, int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* bitmask,
                   int64_t* counts)
    Status row_data(const MaskedInt& panels, const Bitmask& w, int64_t begin, int64_t end, uint8_t* data)
    Status matmul_masked_int(const MaskedInt& w, const Operands& io, Activations mode)
    Status matmul_bitmask(const Bitmask& w, const DenseInt* dense, const Operands& io, Activations mode)
    Status matmul_bsr(const BlockSparse& w, const Operands& io, Activations mode)
    bint count_blocks(const StoredMatrix& m, int64_t blockrows, int64_t blockcols, int64_t* counts)
    bint fill_blocks(const StoredMatrix& m, const BlockSparse& w)
    bint fill_bsr_codes(const FloatRows& m, const BlockSparse& w, int64_t* counts)
    void decode_bsr(const BlockSparse& w, const int64_t* ids, int64_t first, int64_t count, float* out)
    Fault check_bsr(const int64_t* indptr, int64_t block_rows, const void* indices, bint wide_indices,
                    int64_t count, int64_t block_cols)
    Status matmul_csr(const CompressedRows& w, const Operands& io, Activations mode)
    void count_csr(const StoredMatrix& m, int64_t* counts)
    void fill_csr(const StoredMatrix& m, const CompressedRows& w, RowBuffers out)
    void fill_csr_codes(const FloatRows& m, const int64_t* indptr, const int64_t* starts, RowBuffers out, bint wide_indices,
                        int64_t* counts)
    void decode_csr(const CompressedRows& w, const int64_t* ids, int64_t first, int64_t count, float* out)
    void count_runs(const CompressedRows& w, uint8_t* runs)
    Status add_product(Strided[float] a, Strided[float] b, Strided[float] out, int64_t rows, int64_t cols, int64_t depth)
    Status add_product(Strided[float] a, Strided[float] b, Strided[double] out, int64_t rows, int64_t cols, int64_t depth)
    Status add_product(Strided[double] a, Strided[double] b, Strided[double] out, int64_t rows, int64_t cols, int64_t depth)
    void fix(const Block& block, int64_t rows)
    void grid_errors(const float* w, const float* weight, int64_t rows, int64_t cols, int64_t group, const Grid& grid,
                     float* error)
