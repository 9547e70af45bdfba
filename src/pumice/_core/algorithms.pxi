# What the algorithms compute: included by native.pyx.

ctypedef fused Real:
    float
    double
ctypedef fused Sum:
    float
    double


cdef cpp.Strided[Real] strided(const Real[:, :] m) noexcept nogil:
    cdef cpp.Strided[Real] view
    view.at = <Real*>&m[0, 0]
    view.row, view.col = m.strides[0] // <int64_t>sizeof(Real), m.strides[1] // <int64_t>sizeof(Real)
    return view


cdef int add_strided(const Sum[:, :] out, const Real[:, :] a, const Real[:, :] b) except -1:
    cdef cpp.Status status
    if not (Sum is float and Real is double):  # which nothing asks for
        with nogil:
            status = cpp.add_product(strided(a), strided(b), strided(out), out.shape[0], out.shape[1], a.shape[1])
        return raise_on(status)


def add_product(out not None, a not None, b not None):
    if not out.ndim == a.ndim == b.ndim == 2:
        raise ValueError(f"out: expected three matrices, got {out.ndim}, {a.ndim} and {b.ndim} dimensions")
    cdef int64_t rows = out.shape[0], cols = out.shape[1], depth = a.shape[1]
    check_shape("a", (rows, depth), a.shape)
    check_shape("b", (depth, cols), b.shape)
    sums = {np.dtype("f4"): ("f4", "f8"), np.dtype("f8"): ("f8",)}.get(a.dtype)
    if sums is None:
        raise ValueError(f"a: expected float32 or float64, got {a.dtype}")
    check_dtype("b", a.dtype, b.dtype)
    if out.dtype not in sums:
        raise ValueError(f"out: expected {' or '.join(np.dtype(d).name for d in sums)} for such operands, got {out.dtype}")
    if not (rows and cols and depth):
        return
    if out.strides[1] != out.itemsize or not out.flags.writeable:
        raise ValueError(f"out: expected rows without gaps that may be written to, got strides {out.strides}")
    if a.dtype == np.float64:
        add_strided[double, double](out, a, b)
    elif out.dtype == np.float64:
        add_strided[double, float](out, a, b)
    else:
        add_strided[float, float](out, a, b)


def fix(const float[:, ::1] w not None, float[:, ::1] drift not None, float[:, ::1] errors not None, int64_t first,
        int64_t start, int64_t stop, const float[:, ::1] factor not None, const float[::1] variance not None,
        double[::1] loss not None, const uint8_t[:, ::1] keep=None, grid=None, const int32_t[::1] group_of=None):
    cdef int64_t i, rows = w.shape[0], cols = w.shape[1], width = factor.shape[0]
    check_shape("drift", (rows, cols), (drift.shape[0], drift.shape[1]))
    check_shape("errors", (rows, width), (errors.shape[0], errors.shape[1]))
    check_shape("factor", (width, width), (width, factor.shape[1]))
    check_shape("variance", (width,), (variance.shape[0],))
    check_shape("loss", (rows,), (loss.shape[0],))
    if not 1 <= width <= cpp.kMostColumns:
        raise ValueError(f"factor: expected 1 to {cpp.kMostColumns} columns, got {width}")
    if not (0 <= first <= cols - width and 0 <= start <= stop <= width):
        raise ValueError(f"start: expected 0 <= start <= stop <= {width} behind a first of 0 to {cols - width}, "
                         f"got {start}, {stop} and {first}")
    if keep is not None:
        check_shape("keep", (rows, stop - start), (keep.shape[0], keep.shape[1]))
    cdef cpp.Grid levels
    if grid is not None:
        scales, zeros, minima, bits = grid
        fill_grid(&levels, rows, scales, zeros, minima, bits)
        if group_of is None:
            raise ValueError("group_of: expected the group of each column beside a grid, got None")
        check_shape("group_of", (width,), (group_of.shape[0],))
        for i in range(width):
            if not 0 <= group_of[i] < levels.groups:
                raise ValueError(f"group_of: expected groups from 0 to {levels.groups - 1}, got {group_of[i]}")
    if rows == 0:
        return
    cdef cpp.Block block
    block.w, block.drift, block.errors = &w[0, first], &drift[0, first], &errors[0, 0]
    block.stride, block.width, block.start, block.stop = cols, width, start, stop
    block.factor, block.variance, block.loss = &factor[0, 0], &variance[0], &loss[0]
    block.keep = &keep[0, 0] if keep is not None else NULL
    block.grid = &levels if grid is not None else NULL
    block.group_of = &group_of[0] if group_of is not None else NULL
    with nogil:
        cpp.fix(block, rows)


def grid_errors(const float[:, ::1] w not None, const float[:, ::1] scales not None, const uint8_t[:, ::1] zeros, int bits,
                int64_t group, const float[:, ::1] minima=None, const float[::1] weight=None):
    cdef int64_t rows = w.shape[0], cols = w.shape[1]
    cdef cpp.Groups g = groups_of(cols, group, bits)
    check_shape("scales", (rows, g.groups), (scales.shape[0], scales.shape[1]))
    cdef cpp.Grid grid
    fill_grid(&grid, rows, scales, zeros, minima, bits)
    if weight is not None:
        check_shape("weight", (cols,), (weight.shape[0],))
    error_array = np.zeros((rows, g.groups), np.float32)
    cdef float[:, ::1] error = error_array
    if rows == 0 or cols == 0:
        return error_array
    with nogil:
        cpp.grid_errors(&w[0, 0], &weight[0] if weight is not None else NULL, rows, cols, g.group, grid, &error[0, 0])
    return error_array
