"""Plain safetensors: every weight decoded, under the name that users know."""

from __future__ import annotations

from functools import partial
from typing import Any

from pumice.checkpoint import SafetensorsWriter
from pumice.exporting.base import Job, is_float, register
from pumice.model_folder import copy_side_file
from pumice.report import TensorReport

DTYPE_KEYS = ("dtype", "torch_dtype")  # of config.json, now and before transformers 5


@register("dense")
def write_dense(job: Job) -> list[TensorReport]:
    """Write all floating-point arrays in the export's dtype; integers, bool and 64-bit floats are copied."""
    reports = []
    with SafetensorsWriter(job.target, max_shard_size=job.max_shard_size, overwrite=job.overwrite) as writer:
        for name, info in job.infos().items():
            if info.compact or is_float(info.dtype):
                reports.append(job.write_decoded(writer, name, info))
            else:
                reports.append(job.copy(writer, name, info))
        for file in job.copied:
            writer.attach(file, partial(copy_side_file, job.source, file, partial(_config, job.dtype)))
        writer.commit()
    return reports


def _config(dtype: str, config: dict[str, Any]) -> dict[str, Any]:
    return config | {key: dtype for key in DTYPE_KEYS if key in config}
