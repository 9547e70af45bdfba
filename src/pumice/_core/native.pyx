# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Kernels for Python. No policy here: check shapes, borrow memory, drop the GIL, raise on status."""

import os

import numpy as np

from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t

from pumice._core cimport cpp

cdef dict MODES = {"int16": <int>cpp.Activations.kInt16, "int8": <int>cpp.Activations.kInt8,
                   "float32": <int>cpp.Activations.kFloat32}
cdef tuple RULES = ("", "indptr must rise from 0 to the number of indices", "indices must be below the number of columns",
                    "indices of a row must be sorted and unique")
cdef int64_t PANEL = 16


def isas():
    return tuple((<bytes>cpp.isa_name_at(i)).decode() for i in range(cpp.isa_count()))


def get_isa():
    return (<bytes>cpp.current_isa()).decode()


def set_isa(str name not None):
    if not cpp.choose_isa(name.encode()):
        raise ValueError(f"isa: expected one of {', '.join(isas())} on this machine, got {name!r}")


def get_num_threads():
    """Threads that a product uses at most: all that the process may run on, or PUMICE_NUM_THREADS."""
    return cpp.get_num_threads()


def set_num_threads(int n):
    """Set the threads that a product uses at most, for the whole process. ValueError below 1."""
    if n < 1:
        raise ValueError(f"n: expected at least 1 thread, got {n}")
    cpp.set_num_threads(n)


def build_info():
    return {"compiler": (<bytes>cpp.compiler()).decode()}


cdef int check_bits(int bits) except -1:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: expected 1 to 8, got {bits}")
    return 0


cdef int check_shape(str name, tuple expected, tuple got) except -1:
    if expected != got:
        raise ValueError(f"{name}: expected shape {expected}, got {got}")
    return 0


cdef cpp.Groups groups_of(int64_t cols, int64_t group, int bits) except *:
    check_bits(bits)
    if group < 1:
        raise ValueError(f"group: expected at least 1, got {group}")
    cdef cpp.Groups g
    g.cols, g.bits = cols, bits
    g.group = min(group, max(cols, 1))
    g.groups = max(1, -(-cols // g.group))
    return g


def first_nonfinite(values not None):
    cdef const float[::1] flat = values.reshape(-1)
    cdef int64_t count = flat.shape[0], where
    with nogil:
        where = cpp.first_nonfinite(&flat[0], count)
    return where


def group_range(const float[:, ::1] w not None, int64_t group):
    cdef cpp.Groups g = groups_of(w.shape[1], group, 8)
    cdef int64_t rows = w.shape[0]
    if w.shape[1] == 0:
        return np.zeros((rows, g.groups), np.float32), np.zeros((rows, g.groups), np.float32)
    low_array, high_array = np.empty((rows, g.groups), np.float32), np.empty((rows, g.groups), np.float32)
    cdef float[:, ::1] low = low_array, high = high_array
    with nogil:
        cpp.group_range(&w[0, 0], rows, g, &low[0, 0], &high[0, 0])
    return low_array, high_array


cdef int check_offsets(zeros, minima, tuple per_group) except -1:
    if zeros is not None and minima is not None:
        raise ValueError("minima: expected None beside zeros, got an array")
    if zeros is not None:
        check_shape("zeros", per_group, zeros.shape)
    if minima is not None:
        check_shape("minima", per_group, minima.shape)
    return 0


def encode_int(const float[:, ::1] w not None, const float[:, ::1] scales not None, zeros, int bits, int64_t group,
               minima=None):
    cdef cpp.Groups g = groups_of(w.shape[1], group, bits)
    cdef int64_t rows = w.shape[0]
    cdef const uint8_t[:, ::1] z = zeros
    cdef const float[:, ::1] lows = minima
    check_shape("scales", (rows, g.groups), (scales.shape[0], scales.shape[1]))
    check_offsets(zeros, minima, (rows, g.groups))
    packed = np.empty((rows, cpp.row_bytes(g.cols, bits)), np.uint8)
    cdef uint8_t[:, ::1] out = packed
    with nogil:
        cpp.encode(&w[0, 0], &scales[0, 0], &z[0, 0] if z is not None else NULL,
                   &lows[0, 0] if lows is not None else NULL, rows, g, &out[0, 0])
    return packed


def decode_int(const uint8_t[:, ::1] packed not None, const float[:, ::1] scales not None, zeros, int bits,
               int64_t group, int64_t cols, uint8_t xor=0, minima=None):
    cdef cpp.Groups g = groups_of(cols, group, bits)
    cdef int64_t rows = packed.shape[0]
    cdef const uint8_t[:, ::1] z = zeros
    cdef const float[:, ::1] lows = minima
    check_shape("packed", (rows, cpp.row_bytes(cols, bits)), (rows, packed.shape[1]))
    check_shape("scales", (rows, g.groups), (scales.shape[0], scales.shape[1]))
    check_offsets(zeros, minima, (rows, g.groups))
    w = np.empty((rows, cols), np.float32)
    cdef float[:, ::1] out = w
    with nogil:
        cpp.decode(&packed[0, 0], &scales[0, 0], &z[0, 0] if z is not None else NULL,
                   &lows[0, 0] if lows is not None else NULL, rows, g, xor, &out[0, 0])
    return w


def pack_codes(const uint8_t[:, ::1] codes not None, int bits):
    check_bits(bits)
    cdef int64_t rows = codes.shape[0], cols = codes.shape[1], bad
    packed = np.empty((rows, cpp.row_bytes(cols, bits)), np.uint8)
    cdef uint8_t[:, ::1] out = packed
    with nogil:
        bad = cpp.pack(&codes[0, 0], cols, bits, 0, rows, &out[0, 0])
    if bad >= 0:
        raise ValueError(f"codes: expected values below {1 << bits}, got {codes[bad // cols, bad % cols]} "
                         f"at index ({bad // cols}, {bad % cols})")
    return packed


def unpack_codes(const uint8_t[:, ::1] packed not None, int bits, int64_t cols):
    check_bits(bits)
    cdef int64_t rows = packed.shape[0]
    check_shape("packed", (rows, cpp.row_bytes(cols, bits)), (rows, packed.shape[1]))
    codes = np.empty((rows, cols), np.uint8)
    cdef uint8_t[:, ::1] out = codes
    with nogil:
        cpp.unpack(&packed[0, 0], cols, bits, 0, rows, &out[0, 0])
    return codes


cdef int check_kernel_bits(int bits) except -1:
    if bits not in (2, 3, 4, 5, 6, 8):
        raise ValueError(f"bits: expected 2, 3, 4, 5, 6 or 8, got {bits}")
    return 0


def prepack_dense(const uint8_t[:, ::1] packed not None, int bits, int64_t cols):
    check_kernel_bits(bits)
    cdef int64_t rows = packed.shape[0]
    check_shape("packed", (rows, cpp.row_bytes(cols, bits)), (rows, packed.shape[1]))
    panels = np.empty((-(-rows // PANEL), cpp.panel_words(cols, bits), PANEL, 4), np.uint8)
    cdef uint8_t[:, :, :, ::1] out = panels
    with nogil:
        cpp.prepack(&packed[0, 0], rows, cols, bits, &out[0, 0, 0, 0])
    return panels


def unprepack_dense(const uint8_t[:, :, :, ::1] prepacked not None, const int64_t[::1] ids not None, int bits, int64_t cols):
    check_kernel_bits(bits)
    cdef int64_t i, panels = prepacked.shape[0]
    check_shape("prepacked", (panels, cpp.panel_words(cols, bits), PANEL, 4),
                (panels, prepacked.shape[1], prepacked.shape[2], prepacked.shape[3]))
    for i in range(ids.shape[0]):
        if not 0 <= ids[i] < panels * PANEL:
            raise IndexError(f"ids: expected rows below {panels * PANEL}, got {ids[i]}")
    packed = np.empty((ids.shape[0], cpp.row_bytes(cols, bits)), np.uint8)
    cdef uint8_t[:, ::1] out = packed
    with nogil:
        cpp.unprepack(&prepacked[0, 0, 0, 0], &ids[0], ids.shape[0], cols, bits, &out[0, 0])
    return packed


cdef int mode_of(activations) except -1:
    if activations not in MODES:
        raise ValueError(f"activations: expected one of {', '.join(MODES)}, got {activations!r}")
    return MODES[activations]


cdef cpp.Operands operands(const float[:, ::1] x, float[:, ::1] y, const float[::1] bias, int64_t rows,
                           int64_t cols) except *:
    cdef cpp.Operands io
    check_shape("x", (x.shape[0], cols), (x.shape[0], x.shape[1]))
    check_shape("y", (x.shape[0], rows), (y.shape[0], y.shape[1]))
    if bias is not None:
        check_shape("bias", (rows,), (bias.shape[0],))
    io.x, io.y, io.batch = &x[0, 0], &y[0, 0], x.shape[0]
    io.bias = &bias[0] if bias is not None else NULL
    return io


cdef int raise_on(cpp.Status status) except -1:
    if status == cpp.Status.kNoMemory:
        raise MemoryError("no memory for the workspace of a product")
    if status != cpp.Status.kOk:
        raise ValueError("the core refused the arguments of a product")
    return 0


def matmul_dense_int(const float[:, ::1] x not None, float[:, ::1] y not None, codes not None, scales not None,
                     zeros, bias, int bits, int64_t group, activations, uint8_t xor=0, minima=None):
    cdef int64_t rows = y.shape[1], cols = x.shape[1]
    check_kernel_bits(bits)
    cdef cpp.Groups g = groups_of(cols, group, bits)
    if g.groups > 1 and (group < 16 or group & (group - 1)):
        raise ValueError(f"group: expected a power of two >= 16 or at least cols, got {group}")
    cdef int mode = mode_of(activations)
    if activations == "float32" and bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8 with float32 activations, got {bits}")
    cdef int64_t panels = -(-rows // PANEL)
    cdef bint prepacked = codes.ndim == 4
    cdef tuple per_group
    if prepacked:
        check_shape("codes", (panels, cpp.panel_words(cols, bits), PANEL, 4), codes.shape)
        per_group = (panels, g.groups, PANEL)
    else:
        check_shape("codes", (rows, cpp.row_bytes(cols, bits)), codes.shape)
        per_group = (rows, g.groups)
    check_shape("scales", per_group, scales.shape)
    check_offsets(zeros, minima, per_group)
    if minima is not None and minima.dtype != scales.dtype:
        raise ValueError(f"minima: expected {scales.dtype} as scales, got {minima.dtype}")
    cdef bint half = scales.dtype == np.float16

    cdef const uint8_t[::1] c = codes.reshape(-1)
    cdef const uint16_t[::1] s16 = None
    cdef const float[::1] s32 = None
    cdef const uint16_t[::1] m16 = None
    cdef const float[::1] m32 = None
    cdef const uint8_t[::1] z = None
    if half:
        s16 = scales.reshape(-1).view(np.uint16)
        m16 = None if minima is None else minima.reshape(-1).view(np.uint16)
    else:
        s32 = scales.reshape(-1)
        m32 = None if minima is None else minima.reshape(-1)
    if zeros is not None:
        z = zeros.reshape(-1)
    cdef cpp.DenseInt w
    w.codes = &c[0]
    if half:
        w.scales = &s16[0]
    else:
        w.scales = &s32[0]
    w.zeros = &z[0] if z is not None else NULL
    if minima is not None:
        if half:
            w.minima = &m16[0]
        else:
            w.minima = &m32[0]
    w.rows, w.cols, w.group, w.bits, w.flip = rows, cols, g.group, bits, xor
    w.half_scales, w.prepacked = half, prepacked
    cdef cpp.Operands io = operands(x, y, bias, rows, cols)
    cdef cpp.Status status
    with nogil:
        status = cpp.matmul_dense_int(w, io, <cpp.Activations>mode)
    raise_on(status)


def matmul_dense_half(const float[:, ::1] x not None, float[:, ::1] y not None, const uint16_t[:, ::1] w not None,
                      bias, bint bfloat16):
    cdef cpp.DenseHalf view
    view.bits, view.rows, view.cols, view.bfloat16 = &w[0, 0], w.shape[0], w.shape[1], bfloat16
    cdef cpp.Operands io = operands(x, y, bias, view.rows, view.cols)
    cdef cpp.Status status
    with nogil:
        status = cpp.matmul_dense_half(view, io)
    raise_on(status)


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


def matmul_bsr(const float[:, ::1] x not None, float[:, ::1] y not None, const int64_t[::1] indptr not None,
               indices not None, data not None, scales, bias, activations):
    cdef cpp.BlockSparse w
    cdef int64_t rows = y.shape[1], cols = x.shape[1]
    cdef const float[:, :, ::1] f32 = None
    cdef const int8_t[:, :, ::1] i8 = None
    cdef const float[::1] s = scales
    cdef int mode = mode_of(activations)
    if data.dtype == np.int8:
        i8 = data
        w.data = &i8[0, 0, 0]
        if s is None:
            raise ValueError("scales: expected one per row with int8 data, got None")
        check_shape("scales", (rows,), (s.shape[0],))
    else:
        f32 = data
        w.data = &f32[0, 0, 0]
        if s is not None:
            raise ValueError("scales: expected None with float32 data, got an array")
    w.indptr, w.rows, w.cols = &indptr[0], rows, cols
    w.blockrows, w.blockcols = data.shape[1], data.shape[2]
    if w.blockrows < 1 or w.blockcols < 1:
        raise ValueError(f"data: expected blocks of at least 1 x 1, got {data.shape[1:]}")
    w.scales = &s[0] if s is not None else NULL
    check_shape("indptr", (-(-rows // w.blockrows) + 1,), (indptr.shape[0],))
    check_shape("indices", (data.shape[0],), indices.shape)
    fill_indices(&w, indices)
    cdef cpp.Operands io = operands(x, y, bias, rows, cols)
    cdef cpp.Status status
    with nogil:
        status = cpp.matmul_bsr(w, io, <cpp.Activations>mode)
    raise_on(status)


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


cdef read_environment():
    """PUMICE_ISA and PUMICE_NUM_THREADS choose for the process; a value that cannot be met is an error, never ignored."""
    name = os.environ.get("PUMICE_ISA")
    if name:
        if name not in isas():
            raise ImportError(f"PUMICE_ISA: expected one of {', '.join(isas())} on this machine, got {name!r}")
        set_isa(name)
    problem = cpp.thread_config_error()
    if problem != NULL:
        raise ImportError((<bytes>problem).decode())


read_environment()
