"""Makes ggml.gguf and ggml.npz with llama.cpp's own quantizers, its own writer and its own values.

Run it where llama-cpp-python is installed, as `make interop-gguf` does:
.venv-interop-gguf/bin/python tests/golden/make_gguf.py
The files in the tree were made with llama-cpp-python 0.3.36 (ggml 0.25.3). They have a tensor of each type that we
decode, 3 x 256; its values are what ggml's `to_float` makes of it. Q8_1 has no such function: ggml multiplies with its
blocks, and stores them in no file of its own. Its codes and scale are those of Q8_0 for the same weights, so its
values are, too.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

HERE = Path(__file__).parent
ROWS, COLS = 3, 256
TYPES = {
    "F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
}  # fmt: skip


class Init(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Traits(ctypes.Structure):
    """ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("weights", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def library() -> ctypes.CDLL:
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    ggml.ggml_init.argtypes, ggml.ggml_init.restype = [Init], ctypes.c_void_p
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    ggml.ggml_new_tensor_2d.restype = ctypes.c_void_p
    ggml.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.gguf_init_empty.restype = ctypes.c_void_p
    ggml.gguf_add_tensor.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    ggml.gguf_set_val_str.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    ggml.gguf_set_tensor_data.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    ggml.gguf_write_to_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool]
    ggml.gguf_write_to_file.restype = ctypes.c_bool
    return ggml


def main() -> None:
    ggml = library()
    weights = np.random.default_rng(9).standard_normal((ROWS, COLS)).astype(np.float32)
    weights[1] *= -1e-3
    context = ggml.ggml_init(Init(1 << 20, None, True))
    file = ggml.gguf_init_empty()
    ggml.gguf_set_val_str(file, b"general.architecture", b"llama")
    values, blobs = {}, []
    for name, number in TYPES.items():
        traits = ggml.ggml_get_type_traits(number).contents
        blob = ctypes.create_string_buffer(ROWS * COLS // traits.weights * traits.nbytes)
        if name == "F32":
            blob.raw = weights.tobytes()
        else:
            traits.from_float(weights.ctypes.data, blob, weights.size)
        values[name] = weights.copy()
        if traits.to_float:
            traits.to_float(blob, values[name].ctypes.data, weights.size)
        tensor = ggml.ggml_new_tensor_2d(context, number, COLS, ROWS)
        ggml.ggml_set_name(tensor, name.encode())
        ggml.gguf_add_tensor(file, tensor)
        ggml.gguf_set_tensor_data(file, name.encode(), blob)
        blobs.append(blob)  # alive until the file is written
    values["Q8_1"] = values["Q8_0"]
    assert ggml.gguf_write_to_file(file, str(HERE / "ggml.gguf").encode(), False)
    np.savez_compressed(HERE / "ggml.npz", **values)
    print(f"llama-cpp-python {llama_cpp.__version__}")


if __name__ == "__main__":
    main()
