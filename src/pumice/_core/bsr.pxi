# Block-sparse weights, CSR among them: included by native.pyx.

cdef tuple RULES = ("", "indptr must rise from 0 to the number of indices", "indices must be below the number of columns",
                    "indices of a row must be sorted and unique")


cdef bint fill_indices(cpp.BlockSparse* w, indices) except -1:
    cdef const uint16_t[::1] narrow
    cdef const uint32_t[::1] wide
    w.wide_indices = indices.dtype != np.uint16
    if w.wide_indices:
        wide = indices
        w.indices = &wide[0]
    else:
        narrow = indices
        w.indices = &narrow[0]
    return True


cdef class BlockSparse(Weights):
    cdef cpp.BlockSparse w
    cdef const int64_t[::1] indptr
    cdef object indices
    cdef const float[:, :, ::1] floats
    cdef const int8_t[:, :, ::1] integers
    cdef const float[::1] scales

    def __init__(self, const int64_t[::1] indptr not None, indices not None, data not None, scales, int64_t rows,
                 int64_t cols):
        self.indptr, self.indices, self.scales = indptr, indices, scales
        self.w.rows, self.w.cols = self.rows, self.cols = rows, cols
        self.w.blockrows, self.w.blockcols = data.shape[1], data.shape[2]
        if self.w.blockrows < 1 or self.w.blockcols < 1:
            raise ValueError(f"data: expected blocks of at least 1 x 1, got {data.shape[1:]}")
        self.w.scales = NULL
        if data.dtype == np.int8:
            if scales is None:
                raise ValueError("scales: expected one per row with int8 data, got None")
            check_shape("scales", (rows,), scales.shape)
            self.integers = data
            self.w.data = &self.integers[0, 0, 0]
            self.w.scales = &self.scales[0]
        else:
            if scales is not None:
                raise ValueError("scales: expected None with float32 data, got an array")
            self.floats = data
            self.w.data = &self.floats[0, 0, 0]
        check_shape("indptr", (-(-rows // self.w.blockrows) + 1,), (indptr.shape[0],))
        check_shape("indices", (data.shape[0],), indices.shape)
        self.w.indptr = &indptr[0]
        fill_indices(&self.w, indices)

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_bsr(self.w, io, mode)


def check_bsr(const int64_t[::1] indptr not None, indices not None, int64_t block_cols):
    if indptr.shape[0] < 1:
        raise ValueError("indptr: expected at least one entry, got none")
    cdef cpp.BlockSparse w
    fill_indices(&w, indices)
    cdef int64_t count = indices.shape[0], block_rows = indptr.shape[0] - 1
    cdef cpp.Fault fault
    with nogil:
        fault = cpp.check_bsr(&indptr[0], block_rows, w.indices, w.wide_indices, count, block_cols)
    return RULES[fault.rule], (fault.row if fault.rule else -1)
