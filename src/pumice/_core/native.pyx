# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Kernels for Python. No policy here: check shapes, borrow memory, drop the GIL, raise on status."""

import os

import numpy as np

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pumice import memory
from pumice._core cimport cpp

cdef dict MODES = {"int16": <int>cpp.Activations.kInt16, "int8": <int>cpp.Activations.kInt8,
                   "float32": <int>cpp.Activations.kFloat32}
cdef int64_t PANEL = 16, DATA_PADDING = 64


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


def group_range(w not None, int64_t group, str values not None="float32"):
    cdef cpp.StoredMatrix m = float_matrix(w, values)
    cdef cpp.Groups g = groups_of(m.cols, group, 8)
    if m.cols == 0:
        return np.zeros((m.rows, g.groups), np.float32), np.zeros((m.rows, g.groups), np.float32)
    low_array, high_array = np.empty((m.rows, g.groups), np.float32), np.empty((m.rows, g.groups), np.float32)
    cdef float[:, ::1] low = low_array, high = high_array
    with nogil:
        cpp.group_range(m, g.group, &low[0, 0], &high[0, 0])
    return low_array, high_array


def row_energies(const float[:, ::1] exact not None, const float[:, ::1] decoded not None):
    cdef int64_t rows = exact.shape[0], cols = exact.shape[1]
    check_shape("decoded", (rows, cols), (decoded.shape[0], decoded.shape[1]))
    noise_array, signal_array = np.zeros(rows, np.float64), np.zeros(rows, np.float64)
    cdef double[::1] noise = noise_array, signal = signal_array
    if rows and cols:
        with nogil:
            cpp.row_energies(&exact[0, 0], &decoded[0, 0], rows, cols, &noise[0], &signal[0])
    return noise_array, signal_array


cdef int check_offsets(zeros, minima, tuple per_group) except -1:
    if zeros is not None and minima is not None:
        raise ValueError("minima: expected None beside zeros, got an array")
    if zeros is not None:
        check_shape("zeros", per_group, zeros.shape)
    if minima is not None:
        check_shape("minima", per_group, minima.shape)
    return 0


cdef int fill_grid(cpp.Grid* grid, int64_t rows, const float[:, ::1] scales, const uint8_t[:, ::1] zeros,
                   const float[:, ::1] minima, int bits) except -1:
    """What codes mean; the caller keeps the arrays, of which zeros or minima or both are None."""
    check_bits(bits)
    check_shape("scales", (rows,), (scales.shape[0],))
    check_offsets(zeros, minima, (rows, scales.shape[1]))
    grid.scales = &scales[0, 0]
    grid.zeros = &zeros[0, 0] if zeros is not None else NULL
    grid.minima = &minima[0, 0] if minima is not None else NULL
    grid.groups, grid.bits = scales.shape[1], bits
    return 0


cdef encoded(w, str values, const float[:, ::1] scales, const uint8_t[:, ::1] zeros, int bits, int64_t group,
             const float[:, ::1] minima, double[::1] noise, double[::1] signal):
    cdef cpp.StoredMatrix m = float_matrix(w, values)
    cdef cpp.Groups g = groups_of(m.cols, group, bits)
    cdef cpp.Grid grid
    check_shape("scales", (m.rows, g.groups), (scales.shape[0], scales.shape[1]))
    fill_grid(&grid, m.rows, scales, zeros, minima, bits)
    packed = np.empty((m.rows, cpp.row_bytes(m.cols, bits)), np.uint8)
    cdef uint8_t[:, ::1] out = packed
    cdef double* lost = &noise[0] if noise is not None else NULL
    cdef double* whole = &signal[0] if signal is not None else NULL
    with nogil:
        cpp.encode(m, grid, g.group, &out[0, 0], lost, whole)
    return packed


def encode_int(w not None, const float[:, ::1] scales not None, const uint8_t[:, ::1] zeros, int bits, int64_t group,
               const float[:, ::1] minima=None):
    return encoded(w, "float32", scales, zeros, bits, group, minima, None, None)


def encode_int_rows(w not None, str values not None, const float[:, ::1] scales not None, const uint8_t[:, ::1] zeros, int bits,
                    int64_t group, const float[:, ::1] minima=None):
    noise, signal = np.zeros(len(w), np.float64), np.zeros(len(w), np.float64)
    return encoded(w, values, scales, zeros, bits, group, minima, noise, signal), noise, signal


def decode_int(const uint8_t[:, ::1] packed not None, const float[:, ::1] scales not None, const uint8_t[:, ::1] zeros,
               int bits, int64_t group, int64_t cols, uint8_t xor=0, const float[:, ::1] minima=None):
    cdef int64_t rows = packed.shape[0]
    cdef cpp.Groups g = groups_of(cols, group, bits)
    cdef cpp.Grid grid
    check_shape("packed", (rows, cpp.row_bytes(cols, bits)), (rows, packed.shape[1]))
    check_shape("scales", (rows, g.groups), (scales.shape[0], scales.shape[1]))
    fill_grid(&grid, rows, scales, zeros, minima, bits)
    w = np.empty((rows, cols), np.float32)
    cdef float[:, ::1] out = w
    with nogil:
        cpp.decode(&packed[0, 0], grid, g.group, rows, cols, xor, &out[0, 0])
    return w


def sha256_pieces(const uint8_t[::1] data not None, int64_t length):
    if length < 64 or length % 64:
        raise ValueError(f"length: expected a multiple of 64, got {length}")
    cdef int64_t count = data.shape[0] // length
    cdef bint able
    digests = np.empty(32 * count, np.uint8)
    cdef uint8_t[::1] out = digests
    with nogil:
        able = cpp.sha256_pieces(&data[0], count, length, &out[0])
    return digests.tobytes() if able else None


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
        cpp.unpack(&packed[0, 0], rows, cols, bits, &out[0, 0])
    return codes


def encode_halves(values not None, bint bfloat16):
    cdef const float[::1] flat = values.reshape(-1)
    bits_array = memory.empty(values.shape, np.uint16)
    cdef uint16_t[::1] bits = bits_array.reshape(-1)
    cdef int64_t count = flat.shape[0], bad
    with nogil:
        bad = cpp.encode_halves(&flat[0], bfloat16, count, &bits[0])
    return bits_array, bad


def decode_halves(bits not None, bint bfloat16):
    cdef const uint16_t[::1] flat = bits.reshape(-1)
    values_array = np.empty(bits.shape, np.float32)
    cdef float[::1] values = values_array.reshape(-1)
    cdef int64_t count = flat.shape[0]
    with nogil:
        cpp.decode_halves(&flat[0], bfloat16, count, &values[0])
    return values_array


cdef int check_kernel_bits(int bits) except -1:
    if bits not in (2, 3, 4, 5, 6, 8):
        raise ValueError(f"bits: expected 2, 3, 4, 5, 6 or 8, got {bits}")
    return 0


def prepack_dense(const uint8_t[:, ::1] packed not None, int bits, int64_t cols):
    check_kernel_bits(bits)
    cdef int64_t rows = packed.shape[0]
    check_shape("packed", (rows, cpp.row_bytes(cols, bits)), (rows, packed.shape[1]))
    panels = memory.empty((-(-rows // PANEL), cpp.panel_words(cols, bits), PANEL, 4), np.uint8)
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
    mode = MODES.get(activations)
    if mode is None:
        raise ValueError(f"activations: expected one of {', '.join(MODES)}, got {activations!r}")
    return mode


cdef int raise_on(cpp.Status status) except -1:
    if status == cpp.Status.kNoMemory:
        raise MemoryError("no memory for the workspace of a product")
    if status != cpp.Status.kOk:
        raise ValueError("the core refused the arguments of a product")
    return 0


cdef float* borrow(str name, array, Py_buffer* buffer, int ndim, int64_t first, int64_t last, int flags) except? NULL:
    """The floats of a C-contiguous array of this shape; `first` < 0: of any length there. A typed memoryview costs twice that."""
    PyObject_GetBuffer(array, buffer, flags | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    cdef Py_ssize_t* shape = buffer.shape
    if buffer.ndim != ndim or shape[ndim - 1] != last or (first >= 0 and shape[0] != first):
        got = tuple(shape[i] for i in range(buffer.ndim))
        expected = (last,) if ndim == 1 else ("batch" if first < 0 else first, last)
        PyBuffer_Release(buffer)
        raise ValueError(f"{name}: expected shape {expected}, got {got}")
    if buffer.format[0] != b"f" or buffer.format[1] != 0:
        got = (<bytes>buffer.format).decode()
        PyBuffer_Release(buffer)
        raise ValueError(f"{name}: expected float32, got an array of format {got!r}")
    return <float*>buffer.buf


cdef class Weights:
    """Weights as kernels see them: checked when made, so that a product looks at x and y only."""

    cdef int64_t rows, cols

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.Status.kBadArgument

    cdef int check_mode(self, str activations) except -1:
        return 0

    def matmul(self, x not None, y not None, bias, str activations not None):
        cdef int mode = mode_of(activations)
        self.check_mode(activations)
        cdef cpp.Operands io
        cdef Py_buffer xs, ys, biases
        cdef cpp.Status status
        io.bias = NULL
        io.x = borrow("x", x, &xs, 2, -1, self.cols, 0)
        try:
            io.batch = xs.shape[0]
            io.y = borrow("y", y, &ys, 2, io.batch, self.rows, PyBUF_WRITABLE)
            try:
                if bias is not None:
                    io.bias = borrow("bias", bias, &biases, 1, self.rows, self.rows, 0)
                with nogil:
                    status = self.run(io, <cpp.Activations>mode)
                if bias is not None:
                    PyBuffer_Release(&biases)
            finally:
                PyBuffer_Release(&ys)
        finally:
            PyBuffer_Release(&xs)
        raise_on(status)


cdef class DenseInt(Weights):
    cdef cpp.DenseInt w
    cdef const uint8_t[::1] codes, zeros
    cdef const uint16_t[::1] half_scales, half_minima
    cdef const float[::1] scales, minima

    def __init__(self, codes not None, scales not None, zeros, minima, int64_t rows, int64_t cols, int bits, int64_t group,
                 uint8_t xor=0):
        check_kernel_bits(bits)
        cdef cpp.Groups g = groups_of(cols, group, bits)
        if g.groups > 1 and (group < 16 or group & (group - 1)):
            raise ValueError(f"group: expected a power of two >= 16 or at least cols, got {group}")
        cdef int64_t panels = -(-rows // PANEL)
        cdef bint prepacked = codes.ndim == 4
        cdef tuple per_group
        if prepacked:
            per_group = (panels, g.groups, PANEL)
            check_shape("codes", (panels, cpp.panel_words(cols, bits), PANEL, 4), codes.shape)
        else:
            per_group = (rows, g.groups)
            check_shape("codes", (rows, cpp.row_bytes(cols, bits)), codes.shape)
        check_shape("scales", per_group, scales.shape)
        check_offsets(zeros, minima, per_group)
        if minima is not None and minima.dtype != scales.dtype:
            raise ValueError(f"minima: expected {scales.dtype} as scales, got {minima.dtype}")
        self.w.rows, self.w.cols, self.w.group, self.w.bits, self.w.flip = rows, cols, g.group, bits, xor
        self.w.zero = 0 if minima is not None else 1 << (bits - 1)
        self.w.half_scales, self.w.prepacked = scales.dtype == np.float16, prepacked
        self.rows, self.cols = rows, cols
        self.codes = codes.reshape(-1)
        self.w.codes = &self.codes[0]
        self.w.zeros = self.w.minima = NULL
        if zeros is not None:
            self.zeros = zeros.reshape(-1)
            self.w.zeros = &self.zeros[0]
        if self.w.half_scales:
            self.half_scales = scales.reshape(-1).view(np.uint16)
            self.w.scales = &self.half_scales[0]
            if minima is not None:
                self.half_minima = minima.reshape(-1).view(np.uint16)
                self.w.minima = &self.half_minima[0]
        else:
            self.scales = scales.reshape(-1)
            self.w.scales = &self.scales[0]
            if minima is not None:
                self.minima = minima.reshape(-1)
                self.w.minima = &self.minima[0]

    cdef int check_mode(self, str activations) except -1:
        if activations == "float32" and self.w.bits not in (4, 8):
            raise ValueError(f"bits: expected 4 or 8 with float32 activations, got {self.w.bits}")
        return 0

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_dense_int(self.w, io, mode)


cdef class DenseHalf(Weights):
    cdef cpp.DenseHalf w
    cdef const uint16_t[:, ::1] bits

    def __init__(self, const uint16_t[:, ::1] bits not None, bint bfloat16):
        self.bits = bits
        self.rows, self.cols = bits.shape[0], bits.shape[1]
        self.w.bits, self.w.rows, self.w.cols, self.w.bfloat16 = &bits[0, 0], self.rows, self.cols, bfloat16

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_dense_half(self.w, io)


cdef class DenseFloat8(Weights):
    cdef cpp.DenseFloat8 w
    cdef const uint8_t[:, ::1] codes
    cdef const float[:, ::1] scales

    def __init__(self, const uint8_t[:, ::1] codes not None, const float[:, ::1] scales not None, int64_t group):
        if group < 1:
            raise ValueError(f"group: expected at least 1, got {group}")
        self.codes, self.scales = codes, scales
        self.rows, self.cols = codes.shape[0], codes.shape[1]
        expected = (self.rows, max(1, -(-self.cols // group)))
        if (scales.shape[0], scales.shape[1]) != expected:
            raise ValueError(f"scales: expected shape {expected}, got {(scales.shape[0], scales.shape[1])}")
        self.w.codes, self.w.scales = &codes[0, 0], &scales[0, 0]
        self.w.rows, self.w.cols, self.w.group = self.rows, self.cols, group

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_dense_float8(self.w, io)


include "stored.pxi"


include "bitmask.pxi"


include "bsr.pxi"
include "csr.pxi"


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

# Algorithms.

include "algorithms.pxi"
