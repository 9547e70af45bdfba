# Block-sparse weights: included by native.pyx.

cdef tuple RULES = ("", "indptr must rise from 0 to the number of indices", "indices must be below the number of columns",
                    "indices of a row must be sorted and unique")


cdef bint fill_indices(cpp.BlockSparse* w, indices) except -1:
    w.indices, w.wide_indices = index_buffer(indices), indices.dtype != np.uint16
    return True


cdef bint fill_shape(cpp.BlockSparse* w, int64_t rows, int64_t cols, tuple blocksize, str values) except -1:
    w.blockrows, w.blockcols = blocksize
    if w.blockrows < 1 or w.blockcols < 1:
        raise ValueError(f"blocksize: expected blocks of at least 1 x 1, got {blocksize}")
    if values == "int4" and w.blockrows * w.blockcols % 2:
        raise ValueError(f"blocksize: expected an even number of int4 codes in a block, got {blocksize}")
    w.rows, w.cols, w.values = rows, cols, <cpp.Values><int>stored_as(values)[0]
    w.scales = NULL
    return True


cdef class BlockSparse(Weights):
    cdef cpp.BlockSparse w
    cdef const int64_t[::1] indptr
    cdef object indices
    cdef const uint8_t[::1] data
    cdef const float[::1] scales

    def __init__(self, const int64_t[::1] indptr not None, indices not None, data not None, scales, int64_t rows,
                 int64_t cols, tuple blocksize not None, str values not None):
        fill_shape(&self.w, rows, cols, blocksize, values)
        self.rows, self.cols, self.indptr, self.indices = rows, cols, indptr, indices
        check_dtype("data", stored_as(values)[2], data.dtype)
        cdef int64_t size = self.w.blockrows * self.w.blockcols // (2 if values == "int4" else 1)
        if data.size != indices.shape[0] * size:
            raise ValueError(f"data: expected {indices.shape[0]} blocks of {size} entries, got {data.size} in all")
        self.data = data.reshape(-1).view(np.uint8)
        self.w.data = &self.data[0]
        if (scales is not None) != (values in ("int8", "int4")):
            raise ValueError(f"scales: expected one per row of integers, and none of {values}")
        if scales is not None:
            self.scales = scales
            check_shape("scales", (rows,), scales.shape)
            self.w.scales = &self.scales[0]
        check_shape("indptr", (-(-rows // self.w.blockrows) + 1,), (indptr.shape[0],))
        self.w.indptr = &indptr[0]
        fill_indices(&self.w, indices)

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_bsr(self.w, io, mode)

    def decode(self, int64_t start, int64_t stop):
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows: expected some of {self.rows}, got {start}:{stop}")
        cdef float[:, ::1] out = np.empty((stop - start, self.cols), np.float32)
        with nogil:
            cpp.decode_bsr(self.w, NULL, start, stop - start, &out[0, 0])
        return np.asarray(out)

    def take(self, const int64_t[::1] ids not None):
        for i in range(ids.shape[0]):
            if not 0 <= ids[i] < self.rows:
                raise ValueError(f"ids: expected rows below {self.rows}, got {ids[i]}")
        cdef float[:, ::1] out = np.empty((ids.shape[0], self.cols), np.float32)
        with nogil:
            cpp.decode_bsr(self.w, &ids[0], 0, ids.shape[0], &out[0, 0])
        return np.asarray(out)


def count_bsr(matrix not None, tuple blocksize not None, str values not None):
    cdef cpp.StoredMatrix m = stored_matrix(matrix, values)
    cdef cpp.BlockSparse w
    fill_shape(&w, m.rows, m.cols, blocksize, values)
    indptr_array = np.zeros(-(-w.rows // w.blockrows) + 1, np.int64)
    cdef int64_t[::1] indptr = indptr_array
    cdef bint done
    with nogil:
        done = cpp.count_blocks(m, w.blockrows, w.blockcols, &indptr[1])
    if not done:
        raise MemoryError
    return indptr_array.cumsum(out=indptr_array)


def encode_bsr(matrix not None, tuple blocksize not None, str values not None):
    cdef cpp.StoredMatrix m = stored_matrix(matrix, values)
    cdef cpp.BlockSparse w
    fill_shape(&w, m.rows, m.cols, blocksize, values)
    cdef int64_t block_rows = -(-w.rows // w.blockrows), block_cols = -(-w.cols // w.blockcols)
    cdef int64_t[::1] indptr = count_bsr(matrix, blocksize, values)
    cdef bint done
    cdef int64_t count = indptr[block_rows], size = w.blockrows * w.blockcols // (2 if values == "int4" else 1)
    indices = np.empty(count, np.uint16 if block_cols <= 65536 else np.uint32)
    data = np.empty(count * size, stored_as(values)[2])
    cdef uint8_t[::1] bytes_of_data = data.view(np.uint8)
    w.indptr, w.data = &indptr[0], &bytes_of_data[0]
    fill_indices(&w, indices)
    with nogil:
        done = cpp.fill_blocks(m, w)
    if not done:
        raise MemoryError
    return np.asarray(indptr), indices, data


def fill_bsr_codes(const float[:, ::1] w not None, const float[:, ::1] scales not None, str values not None,
                   tuple blocksize not None, const int64_t[::1] indptr not None, indices not None, data not None):
    cdef cpp.FloatRows m = float_rows(w, scales, values, max(w.shape[1], 1))
    cdef cpp.BlockSparse blocks
    fill_shape(&blocks, m.rows, m.g.cols, blocksize, values)
    cdef int64_t block_rows = -(-blocks.rows // blocks.blockrows)
    cdef int64_t size = blocks.blockrows * blocks.blockcols // (2 if values == "int4" else 1)
    check_dtype("data", stored_as(values)[2], data.dtype)
    check_shape("indptr", (block_rows + 1,), (indptr.shape[0],))
    if indptr[block_rows] > indices.shape[0] or indptr[block_rows] * size > data.size:
        raise ValueError("indices: expected room for all blocks that are not 0, got too little")
    if not indices.flags.writeable:
        raise ValueError("indices: expected a writable array, got a read-only one")
    cdef uint8_t[::1] bytes_of_data = data.reshape(-1).view(np.uint8)
    blocks.indptr, blocks.data = &indptr[0], &bytes_of_data[0]
    fill_indices(&blocks, indices)
    counts_array = np.zeros(block_rows, np.int64)
    cdef int64_t[::1] counts = counts_array
    cdef bint done
    with nogil:
        done = cpp.fill_bsr_codes(m, blocks, &counts[0])
    if not done:
        raise MemoryError
    return counts_array


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
