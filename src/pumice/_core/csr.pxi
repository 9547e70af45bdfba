# Compressed sparse rows: included by native.pyx.

cdef class CompressedRows(Weights):
    cdef cpp.CompressedRows w
    cdef const int64_t[::1] indptr, starts
    cdef const uint8_t[::1] data, runs
    cdef const float[::1] scales
    cdef object indices

    def __init__(self, const int64_t[::1] indptr not None, indices not None, data not None, starts, scales, runs,
                 int64_t rows, int64_t cols, str values not None):
        kind, _, dtype = stored_as(values)
        check_shape("indptr", (rows + 1,), (indptr.shape[0],))
        check_dtype("data", dtype, data.dtype)
        self.rows, self.cols, self.indptr, self.indices = rows, cols, indptr, indices
        self.w.rows, self.w.cols, self.w.indptr, self.w.values = rows, cols, &indptr[0], <cpp.Values><int>kind
        self.w.indices, self.w.wide_indices = index_buffer(indices), indices.dtype != np.uint16
        self.data = data.view(np.uint8)
        self.w.data = &self.data[0]
        self.w.starts = NULL
        self.w.scales = NULL
        self.w.runs = NULL
        cdef int64_t count = indices.shape[0], size = count
        if (starts is not None) != (values == "int4"):
            raise ValueError("starts: expected them with int4 values, and with no other")
        if starts is not None:
            check_shape("starts", (rows + 1,), starts.shape)
            self.starts = starts
            self.w.starts = &self.starts[0]
            size = starts[rows]
        check_shape("data", (size,), data.shape)
        if (scales is not None) != (values in ("int8", "int4")):
            raise ValueError("scales: expected one per row with integer values, and none with floats")
        if scales is not None:
            check_shape("scales", (rows,), scales.shape)
            self.scales = scales
            self.w.scales = &self.scales[0]
        if runs is not None:
            check_shape("runs", (rows, -(-cols // 128)), runs.shape)
            self.runs = runs.reshape(-1)
            self.w.runs = &self.runs[0]

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_csr(self.w, io, mode)

    def count_runs(self):
        runs = memory.empty((self.rows, -(-self.cols // 128)), np.uint8)
        cdef uint8_t[::1] out = runs.reshape(-1)
        with nogil:
            cpp.count_runs(self.w, &out[0])
        return runs

    def decode_rows(self, int64_t start, int64_t stop):
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows: expected some of {self.rows}, got {start}:{stop}")
        w = np.empty((stop - start, self.cols), np.float32)
        cdef float[::1] out = w.reshape(-1)
        with nogil:
            cpp.decode_csr(self.w, NULL, start, stop - start, &out[0])
        return w

    def take(self, const int64_t[::1] ids not None):
        cdef int64_t i, count = ids.shape[0]
        for i in range(count):
            if not 0 <= ids[i] < self.rows:
                raise IndexError(f"ids: expected rows below {self.rows}, got {ids[i]}")
        w = np.empty((count, self.cols), np.float32)
        cdef float[::1] out = w.reshape(-1)
        with nogil:
            cpp.decode_csr(self.w, &ids[0], 0, count, &out[0])
        return w


def count_csr(matrix not None, str values not None):
    cdef cpp.StoredMatrix m = stored_matrix(matrix, values)
    counts = np.empty(m.rows, np.int64)
    cdef int64_t[::1] out = counts
    with nogil:
        cpp.count_csr(m, &out[0])
    return counts


def fill_csr(matrix not None, str values not None, const int64_t[::1] indptr not None, const int64_t[::1] starts,
             indices not None, data not None):
    cdef cpp.StoredMatrix m = stored_matrix(matrix, values)
    cdef cpp.CompressedRows w
    cdef cpp.RowBuffers out
    cdef uint8_t[::1] bytes_of_data = data.view(np.uint8)
    check_dtype("data", stored_as(values)[2], data.dtype)
    check_shape("indptr", (m.rows + 1,), (indptr.shape[0],))
    w.indptr, w.values, w.wide_indices = &indptr[0], m.kind, indices.dtype != np.uint16
    w.starts = NULL
    if starts is not None:
        check_shape("starts", (m.rows + 1,), (starts.shape[0],))
        w.starts = &starts[0]
    if indptr[m.rows] > indices.shape[0] or (indptr[m.rows] if starts is None else starts[m.rows]) > data.shape[0]:
        raise ValueError("indices: expected room for all stored values, got too little")
    if not indices.flags.writeable:
        raise ValueError("indices: expected a writable array, got a read-only one")
    out.indices = <void*>index_buffer(indices)
    out.data = &bytes_of_data[0]
    with nogil:
        cpp.fill_csr(m, w, out)


def fill_csr_codes(const float[:, ::1] w not None, const float[:, ::1] scales not None, str values not None,
                   const int64_t[::1] indptr not None, const int64_t[::1] starts, indices not None, data not None):
    cdef cpp.FloatRows m = float_rows(w, scales, values, max(w.shape[1], 1))
    cdef cpp.RowBuffers out
    cdef bint wide = indices.dtype != np.uint16
    cdef uint8_t[::1] bytes_of_data = data.view(np.uint8)
    check_dtype("data", stored_as(values)[2], data.dtype)
    check_shape("indptr", (m.rows + 1,), (indptr.shape[0],))
    if (starts is not None) != (values == "int4"):
        raise ValueError("starts: expected them with int4 values, and with no other")
    if starts is not None:
        check_shape("starts", (m.rows + 1,), (starts.shape[0],))
    if indptr[m.rows] > indices.shape[0] or (indptr[m.rows] if starts is None else starts[m.rows]) > data.shape[0]:
        raise ValueError("indices: expected room for all that is not 0, got too little")
    if not indices.flags.writeable:
        raise ValueError("indices: expected a writable array, got a read-only one")
    out.indices, out.data = <void*>index_buffer(indices), &bytes_of_data[0]
    counts_array = np.empty(m.rows, np.int64)
    cdef int64_t[::1] counts = counts_array
    with nogil:
        cpp.fill_csr_codes(m, &indptr[0], &starts[0] if starts is not None else NULL, out, wide, &counts[0])
    return counts_array
