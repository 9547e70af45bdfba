"""What else a NumPy or torch user can pick for dense weights: torch, ONNX Runtime, OpenVINO.

Each is set up as its own documentation does for speed. Time includes what turns float32 x into what the library takes
and its result back into float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import dense_weight
from harness import Case, Setting, Skip

SCALE = 0.01  # of the random codes: what the codes are does not change the time


def torch_floats(setting: Setting) -> Iterator[Case | Skip]:
    torch = _torch(setting)
    linear = torch.nn.functional.linear
    w = torch.from_numpy(dense_weight(setting))
    copies = [w.clone() for _ in range(setting.copies(w.nbytes))]

    def float32(x: np.ndarray) -> Any:
        return lambda c: linear(torch.from_numpy(x), c)

    yield Case("torch float32", "float32", w.nbytes, copies, float32, copies[0].numpy)
    half = w.bfloat16()
    halves = [half.clone() for _ in range(setting.copies(half.nbytes))]

    def bfloat16(x: np.ndarray) -> Any:
        return lambda c: linear(torch.from_numpy(x).bfloat16(), c).float()

    yield Case("torch bfloat16", "16-bit", half.nbytes, halves, bfloat16, lambda: half.float().numpy())


def torch_int8(setting: Setting) -> Iterator[Case | Skip]:
    torch = _torch(setting)
    torch.backends.quantized.engine = "x86"
    plain = torch.nn.Linear(setting.cols, setting.rows, bias=False)
    plain.weight.data = torch.from_numpy(dense_weight(setting))
    plain.qconfig = torch.ao.quantization.per_channel_dynamic_qconfig
    nbytes = setting.rows * setting.cols
    copies = [torch.ao.nn.quantized.dynamic.Linear.from_float(plain) for _ in range(setting.copies(nbytes))]

    def prepare(x: np.ndarray) -> Any:
        return lambda c: c(torch.from_numpy(x))

    yield Case("torch int8 dynamic", "int8", nbytes, copies, prepare, lambda: copies[0].weight().dequantize().numpy())


def torch_int4(setting: Setting) -> Iterator[Case | Skip]:
    torch = _torch(setting)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    rows, cols = setting.rows, setting.cols
    for group in (32, 128):
        name = f"torch int4pack g{group}"
        if cols % group or rows % 64:
            yield Skip(name, f"expected columns in multiples of {group} and rows in multiples of 64")
            continue
        nbytes = rows * cols // 2 + 4 * rows * cols // group
        codes = torch.randint(0, 16, (rows, cols), dtype=torch.int32)
        scales = torch.rand(cols // group, rows, 2).mul_(SCALE).bfloat16()  # and minima
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        copies = [(packed.clone(), scales.clone()) for _ in range(setting.copies(nbytes))]
        codes = codes.to(torch.uint8)

        def prepare(x: np.ndarray, group: int = group) -> Any:
            return lambda c: multiply(torch.from_numpy(x).bfloat16(), c[0], group, c[1]).float()

        def exact(codes: Any = codes, scales: Any = scales, group: int = group) -> np.ndarray:
            wide = scales.float().repeat_interleave(group, 0)
            return ((codes.float() - 8) * wide[:, :, 0].T + wide[:, :, 1].T).numpy()

        yield Case(name, "int4", nbytes, copies, prepare, exact)


def _torch(setting: Setting) -> Any:
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_num_threads(setting.threads)
    return torch


def onnxruntime(setting: Setting) -> Iterator[Case | Skip]:
    """MatMulNBits with accuracy_level 4: x in int8, blocks of `group` columns."""
    rows, cols = setting.rows, setting.cols
    for bits, group in ((4, 32), (4, 128), (8, 128)):
        name = f"ONNX Runtime {bits}-bit g{group}"
        blocks = -(-cols // group)  # the last one is padded
        nbytes = rows * blocks * (group * bits // 8 + 4)
        count = setting.copies(nbytes)
        # Several sessions would spin against each other: one, which multiplies x by all copies in a run.
        session, codes, scales = _session(setting, bits, group, count)

        def prepare(x: np.ndarray) -> Any:
            return lambda c: c.run(None, {"x": x})[0]

        def exact(codes: Any = codes, scales: Any = scales, bits: int = bits) -> np.ndarray:
            signed = (nibbles(codes) if bits == 4 else codes).astype(np.float32) - 2 ** (bits - 1)
            return (signed * scales.reshape(rows, -1, 1)).reshape(rows, -1)[:, :cols]

        yield Case(name, f"int{bits}", nbytes, [session], prepare, exact, products=count)


def _session(setting: Setting, bits: int, group: int, count: int) -> tuple[Any, np.ndarray, np.ndarray]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    rows, cols = setting.rows, setting.cols
    blocks = -(-cols // group)
    first: Any = None
    nodes, constants, results = [], [], []
    for i in range(count):  # each copy has weights of its own: equal ones it would keep once, and they would be hot
        codes = rng.integers(0, 256, (rows, blocks, group * bits // 8), dtype=np.uint8)
        scales = rng.random(rows * blocks, np.float32) * np.float32(SCALE)
        first = (codes, scales) if i == 0 else first
        constants += [numpy_helper.from_array(codes, f"codes{i}"), numpy_helper.from_array(scales, f"scales{i}")]
        options = {"K": cols, "N": rows, "bits": bits, "block_size": group, "accuracy_level": 4}
        inputs = ["x", f"codes{i}", f"scales{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **options))
        results.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["batch", rows]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", cols])
    graph = helper.make_graph(nodes, "products", [x], results, constants)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, *first


def openvino(setting: Setting) -> Iterator[Case | Skip]:
    """Compressed weights, x quantized to int8 by the plugin in groups of the weights' size."""
    rows, cols = setting.rows, setting.cols
    for kind, group in (("u4", 32), ("u4", 128), ("i8", 128)):
        name = f"OpenVINO {kind} " + (f"g{group}" if kind == "u4" else "per row")
        if kind == "u4" and cols % group:
            yield Skip(name, f"expected columns in multiples of {group}")
            continue
        scales = rows * cols // group if kind == "u4" else rows
        nbytes = rows * cols // (2 if kind == "u4" else 1) + 2 * scales
        models = [_openvino_model(setting, kind, group, seed) for seed in range(setting.copies(nbytes))]
        copies = [_request(model, setting.threads, group) for model, _ in models]
        exact = models[0][1]

        def prepare(x: np.ndarray) -> Any:
            return lambda request: request.infer([x], share_inputs=True, share_outputs=True)[0]

        yield Case(name, "int4" if kind == "u4" else "int8", nbytes, copies, prepare, exact)


def _openvino_model(setting: Setting, kind: str, group: int, seed: int) -> tuple[Any, Any]:
    import openvino as ov
    from openvino import Type
    from openvino import opset13 as op

    rng = np.random.default_rng(seed)
    rows, cols = setting.rows, setting.cols
    x = op.parameter([-1, cols], Type.f32)
    if kind == "u4":
        codes = rng.integers(0, 256, (rows, cols // group, group // 2), dtype=np.uint8)
        scales = (rng.random((rows, cols // group, 1)) * SCALE).astype(np.float16)
        packed = ov.Tensor(Type.u4, ov.Shape([rows, cols // group, group]))
        packed.data[:] = codes.reshape(packed.data.shape)
        zero = op.convert(op.constant(np.full((1, 1, 1), 8, np.uint8)), Type.f16)
        wide = op.multiply(op.subtract(op.convert(op.constant(packed), Type.f16), zero), op.constant(scales))
        w = op.convert(op.reshape(wide, op.constant(np.array([rows, cols], np.int64)), False), Type.f32)

        def exact() -> np.ndarray:
            return ((nibbles(codes).astype(np.float32) - 8) * scales.astype(np.float32)).reshape(rows, cols)
    else:
        codes = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        scales = (rng.random((rows, 1)) * SCALE).astype(np.float16)
        w = op.convert(op.multiply(op.convert(op.constant(codes), Type.f16), op.constant(scales)), Type.f32)

        def exact() -> np.ndarray:
            return codes.astype(np.float32) * scales.astype(np.float32)

    return ov.Model([op.matmul(x, w, False, True)], [x]), exact


def _request(model: Any, threads: int, group: int) -> Any:
    import openvino as ov

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return ov.Core().compile_model(model, "CPU", options).create_infer_request()


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Two codes of each byte, the low one first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
