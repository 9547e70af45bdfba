# Weights at the places of a bitmask: included by native.pyx.


cdef int64_t mask_bytes(int64_t cols) noexcept:
    return (cols + 7) // 8


cdef int check_pattern(int kept, int of, int64_t cols) except -1:
    if kept and (not 0 < kept <= of or cols % of):
        raise ValueError(f"kept: expected 1 to {of} of every {of} of {cols} columns, got {kept}")
    return 0


def find_places(values not None, str name not None, int kept=0, int of=1):
    cdef cpp.StoredMatrix m = stored_matrix(values, name)
    cdef int64_t rows = m.rows, cols = m.cols
    check_pattern(kept, of, cols)
    bitmask_array, counts_array = np.empty((rows, mask_bytes(cols)), np.uint8), np.empty(rows, np.int64)
    cdef uint8_t[:, ::1] bitmask = bitmask_array
    cdef int64_t[::1] counts = counts_array
    with nogil:
        cpp.find_places(m.values, m.kind, rows, cols, kept, of, &bitmask[0, 0], &counts[0])
    return bitmask_array, counts_array


def fill_bitmask_codes(const float[:, ::1] w not None, const float[:, ::1] scales not None, str values not None, int64_t group,
                       const int64_t[::1] offsets not None, data not None):
    cdef cpp.FloatRows m = float_rows(w, scales, values, group)
    check_shape("offsets", (m.rows + 1,), (offsets.shape[0],))
    check_dtype("data", stored_as(values)[2], data.dtype)
    if offsets[m.rows] > data.shape[0]:
        raise ValueError("data: expected room for all that is not 0, got too little")
    bitmask_array, counts_array = np.empty((m.rows, mask_bytes(w.shape[1])), np.uint8), np.empty(m.rows, np.int64)
    cdef uint8_t[:, ::1] bitmask = bitmask_array
    cdef uint8_t[::1] out = data.view(np.uint8)
    cdef int64_t[::1] counts = counts_array
    with nogil:
        cpp.fill_bitmask_codes(m, &offsets[0], &bitmask[0, 0], &out[0], &counts[0])
    return bitmask_array, counts_array


def count_places(const uint8_t[:, ::1] bitmask not None, int64_t cols, int kept=0, int of=1):
    cdef int64_t rows = bitmask.shape[0]
    check_shape("bitmask", (rows, mask_bytes(cols)), (rows, bitmask.shape[1]))
    check_pattern(kept, of, cols)
    counts_array = np.empty(rows, np.int64)
    cdef int64_t[::1] counts = counts_array
    with nogil:
        cpp.count_places(&bitmask[0, 0], rows, cols, kept, of, &counts[0])
    return counts_array


cdef class Bitmask(Weights):
    """Weights row by row. Integer ones have scales (rows, groups); products of others are float ones."""

    cdef cpp.Bitmask w
    cdef cpp.DenseInt dense
    cdef const uint8_t[:, ::1] bitmask
    cdef const int64_t[::1] offsets
    cdef object data
    cdef const uint16_t[::1] half_scales
    cdef const float[::1] scales
    cdef bint integers

    def __init__(self, const uint8_t[:, ::1] bitmask not None, const int64_t[::1] offsets not None, data not None, scales,
                 int64_t rows, int64_t cols, str name not None, int64_t group=0):
        check_shape("bitmask", (rows, mask_bytes(cols)), (bitmask.shape[0], bitmask.shape[1]))
        check_shape("offsets", (rows + 1,), (offsets.shape[0],))
        kind, _, dtype = stored_as(name)
        check_dtype("data", dtype, data.dtype)
        check_shape("data", (offsets[rows],), data.shape)
        self.bitmask, self.offsets, self.data = bitmask, offsets, data
        self.rows, self.cols, self.integers = rows, cols, scales is not None
        self.w.bitmask, self.w.offsets, self.w.data = &bitmask[0, 0], &offsets[0], address("data", data)
        self.w.rows, self.w.cols, self.w.values = rows, cols, <cpp.Values><int>kind
        if scales is None:
            return
        cdef cpp.Groups g = groups_of(cols, group, 8)
        check_shape("scales", (rows, g.groups), scales.shape)
        self.half_scales, self.scales = fill_dense(&self.dense, scales, rows, cols, g.group)
        self.dense.scales = &self.half_scales[0] if self.dense.half_scales else <const void*>&self.scales[0]
        self.dense.zero = 128 if name == "int8" else 8

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_bitmask(self.w, &self.dense if self.integers else NULL, io, mode)

    def gather(self, values not None, out not None):
        """Fill the data of these weights, `out`, with the values at their places."""
        cdef const void* at = address("values", values)
        cdef uint8_t[::1] to = out.view(np.uint8)
        check_shape("values", (self.rows, self.cols), values.shape)
        check_shape("out", (self.offsets[self.rows],), out.shape)
        if values.dtype.itemsize != out.dtype.itemsize:
            raise ValueError(f"out: expected the dtype of values, {values.dtype}, got {out.dtype}")
        with nogil:
            cpp.gather(at, self.w, &to[0])

    def scatter(self, int64_t start, int64_t stop, int64_t stride):
        """Rows [start, stop) with holes: stored floats, or unsigned codes of 8 bits; (rows, stride)."""
        if not 0 <= start <= stop <= self.rows or stride < self.cols:
            raise ValueError(f"rows: expected a range within {self.rows}, got {start}:{stop}")
        out = np.empty((stop - start, stride), np.uint8 if self.integers else self.data.dtype)
        cdef uint8_t[::1] to = out.reshape(-1).view(np.uint8)
        with nogil:
            cpp.scatter(self.w, start, stop, stride, &to[0])
        return out

    def prepack(self):
        """Masks (panels, steps), offsets (panels,) and data of the codes, panel by panel."""
        cdef int64_t panels = -(-self.rows // PANEL), steps = (self.cols + 3) // 4
        masks_array, sizes_array = memory.empty((panels, steps), np.uint64), np.empty(panels, np.int64)
        cdef uint64_t[:, ::1] masks = masks_array
        cdef int64_t[::1] sizes = sizes_array
        cdef cpp.Status status
        with nogil:
            cpp.panel_masks(self.w, &masks[0, 0], &sizes[0])
        ends = np.cumsum(sizes_array)
        data_array = memory.empty((int(ends[panels - 1]) if panels else 0) + DATA_PADDING, np.uint8)
        data_array[-DATA_PADDING:] = 0
        offsets_array = ends - sizes_array
        cdef int64_t[::1] offsets = offsets_array
        cdef uint8_t[::1] data = data_array
        with nogil:
            status = cpp.panel_data(self.w, &masks[0, 0], &offsets[0], &data[0])
        raise_on(status)
        return masks_array, offsets_array, data_array


cdef tuple fill_dense(cpp.DenseInt* w, scales, int64_t rows, int64_t cols, int64_t group):
    """Shape and scales of codes that are not there; (float16 bits or None, float32 or None), to be kept."""
    w.codes = w.zeros = NULL
    w.minima = NULL
    w.rows, w.cols, w.group, w.bits, w.flip, w.prepacked = rows, cols, group, 8, 0, False
    w.half_scales = scales.dtype == np.float16
    flat = scales.reshape(-1)
    return (flat.view(np.uint16), None) if w.half_scales else (None, flat)


cdef class MaskedInt(Weights):
    """Integer weights at the places of a bitmask, prepacked as `Bitmask.prepack` gives them; scales (panels, groups, 16)."""

    cdef cpp.MaskedInt w
    cdef const uint64_t[:, ::1] masks
    cdef const int64_t[::1] offsets
    cdef const uint8_t[::1] data
    cdef const uint16_t[::1] half_scales
    cdef const float[::1] scales

    def __init__(self, const uint64_t[:, ::1] masks not None, const int64_t[::1] offsets not None,
                 const uint8_t[::1] data not None, scales not None, int64_t rows, int64_t cols, str name not None,
                 int64_t group):
        cdef int64_t panels = -(-rows // PANEL)
        cdef cpp.Groups g = groups_of(cols, group, 8)
        check_shape("masks", (panels, (cols + 3) // 4), (masks.shape[0], masks.shape[1]))
        check_shape("offsets", (panels,), (offsets.shape[0],))
        check_shape("scales", (panels, g.groups, PANEL), scales.shape)
        self.masks, self.offsets, self.data = masks, offsets, data
        self.rows, self.cols = rows, cols
        self.w.masks, self.w.offsets, self.w.data = &masks[0, 0], &offsets[0], &data[0]
        self.w.bits = 8 if name == "int8" else 4
        self.half_scales, self.scales = fill_dense(&self.w.dense, scales, rows, cols, g.group)
        self.w.dense.scales = &self.half_scales[0] if self.w.dense.half_scales else <const void*>&self.scales[0]
        self.w.dense.prepacked = True
        self.w.dense.zero = 1 << (self.w.bits - 1)

    cdef cpp.Status run(self, const cpp.Operands& io, cpp.Activations mode) noexcept nogil:
        return cpp.matmul_masked_int(self.w, io, mode)

    def unprepack(self, int64_t start, int64_t stop):
        """Bitmask, offsets and data, row by row, of the rows of panels [start, stop)."""
        if not 0 <= start <= stop <= self.masks.shape[0]:
            raise ValueError(f"panels: expected a range within {self.masks.shape[0]}, got {start}:{stop}")
        cdef int64_t rows = min(stop * PANEL, self.rows) - min(start * PANEL, self.rows)
        bitmask_array, counts_array = np.empty((rows, mask_bytes(self.cols)), np.uint8), np.empty(rows, np.int64)
        cdef uint8_t[:, ::1] bitmask = bitmask_array
        cdef int64_t[::1] counts = counts_array
        with nogil:
            cpp.row_masks(&self.masks[0, 0], self.rows, self.cols, start, stop, &bitmask[0, 0], &counts[0])
        offsets_array = row_offsets(counts_array, "int8" if self.w.bits == 8 else "int4")
        data_array = np.empty(int(offsets_array[rows]), np.uint8)
        cdef int64_t[::1] offsets = offsets_array
        cdef uint8_t[::1] data = data_array
        cdef cpp.Bitmask w
        cdef cpp.Status status
        w.bitmask, w.data, w.offsets, w.rows, w.cols = &bitmask[0, 0], NULL, &offsets[0], rows, self.cols
        w.values = cpp.Values.kInt8 if self.w.bits == 8 else cpp.Values.kInt4
        with nogil:
            status = cpp.row_data(self.w, w, start, stop, &data[0])
        raise_on(status)
        return bitmask_array, offsets_array, data_array


def row_offsets(counts not None, str name not None):
    """Where each row begins in data, and the end: int64 (rows + 1,), of the values that each row has."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum((counts + 1) // 2 if name == "int4" else counts, out=offsets[1:])
    return offsets
