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
