# What the bindings of all sparse layouts share: included by native.pyx.

# Name of a codec -> Values, and the dtypes of a stored value in a matrix and in `data`.
cdef dict STORED = {"float32": (<int>cpp.Values.kFloat32, np.float32, np.float32),
                    "float16": (<int>cpp.Values.kFloat16, np.float16, np.float16),
                    "bfloat16": (<int>cpp.Values.kBfloat16, np.uint16, np.uint16),
                    "int8": (<int>cpp.Values.kInt8, np.int8, np.int8),
                    "int4": (<int>cpp.Values.kInt4, np.int8, np.uint8)}


cdef tuple stored_as(str values):
    if values not in STORED:
        raise ValueError(f"values: expected one of {', '.join(STORED)}, got {values!r}")
    return STORED[values]


cdef int check_dtype(str name, expected, got) except -1:
    if got != expected:
        raise ValueError(f"{name}: expected {np.dtype(expected)}, got {got}")
    return 0


cdef const void* address(str name, array) except? NULL:
    """Of the first element of a C-contiguous array of any dtype."""
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected a C-contiguous array, got strides {array.strides}")
    cdef const uint8_t[::1] flat = array.reshape(-1).view(np.uint8)
    return &flat[0]


cdef const void* index_buffer(indices) except? NULL:
    cdef const uint16_t[::1] narrow
    cdef const uint32_t[::1] wide
    if indices.dtype != np.uint16:
        wide = indices
        return &wide[0]
    narrow = indices
    return &narrow[0]


cdef cpp.StoredMatrix stored_matrix(matrix, str values) except *:
    """Of a C-contiguous matrix, which the caller keeps."""
    cdef cpp.StoredMatrix m
    kind, dtype, _ = stored_as(values)
    check_dtype("matrix", dtype, matrix.dtype)
    m.values, m.kind = address("matrix", matrix), <cpp.Values><int>kind
    m.rows, m.cols = matrix.shape
    return m


cdef cpp.StoredMatrix float_matrix(matrix, str values) except *:
    """The same of floats."""
    if values not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"values: expected float32, float16 or bfloat16, got {values!r}")
    if matrix.ndim != 2:
        raise ValueError(f"matrix: expected two dimensions, got shape {matrix.shape}")
    return stored_matrix(matrix, values)


cdef cpp.FloatRows float_rows(const float[:, ::1] w, const float[:, ::1] scales, str values, int64_t group) except *:
    """Of float32 rows that become int8 or int4 codes; the caller keeps both."""
    cdef cpp.FloatRows m
    if values not in ("int8", "int4"):
        raise ValueError(f"values: expected int8 or int4, got {values!r}")
    m.rows, m.g = w.shape[0], groups_of(w.shape[1], group, 4 if values == "int4" else 8)
    check_shape("scales", (m.rows, m.g.groups), (scales.shape[0], scales.shape[1]))
    m.w, m.scales = &w[0, 0], &scales[0, 0]
    return m
