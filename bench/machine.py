"""What the numbers are measured on, and the environment in which every library is at its best."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PUMICE_NUM_THREADS")
# Set on some machines for old builds of OpenBLAS; they choose a kernel below what the CPU has, and slow NumPy.
SLOWING_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
PEERS = ("torch", "onnxruntime", "openvino", "scipy", "sparse_dot_mkl", "mkl")
COLD_BYTES, MOST_COLD_BYTES = 128 << 20, 512 << 20
CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
# Virtual machines do not name the processor; family and model tell. One that is not here is called by them.
CORES = {
    ("AuthenticAMD", 25, 17): "Zen 4", ("AuthenticAMD", 26, 2): "Zen 5", ("AuthenticAMD", 26, 17): "Zen 5",
    ("GenuineIntel", 6, 106): "Ice Lake", ("GenuineIntel", 6, 143): "Sapphire Rapids",
    ("GenuineIntel", 6, 207): "Emerald Rapids",
}  # fmt: skip


def clean_environment(threads: int) -> dict[str, str]:
    """The environment of a worker."""
    kept = {name: value for name, value in os.environ.items() if name not in SLOWING_VARIABLES}
    return kept | {name: str(threads) for name in THREAD_VARIABLES}


def l3_bytes() -> int:
    """Of the cache that this machine shares: sysfs, which virtual machines describe better than getconf does."""
    for index in sorted(CACHE.glob("index*")):
        if (index / "level").read_text().strip() == "3":
            size = (index / "size").read_text().strip()
            return int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}[size[-1]]
    return 32 << 20


@functools.cache
def cold_bytes() -> int:
    """Bytes of copies that make weights cold: four times the L3, at least 128 MB, at most 512 MB."""
    return min(max(COLD_BYTES, 4 * l3_bytes()), MOST_COLD_BYTES)


def cpu_name(text: str | None = None) -> str:
    """The processor of /proc/cpuinfo (or of its `text`) and its core: ``AMD EPYC (Zen 4)``."""
    lines = (text if text is not None else Path("/proc/cpuinfo").read_text()).splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    if "cpu family" not in facts:  # arm64 has no such names
        return platform.machine()
    family, model = int(facts["cpu family"]), int(facts["model"])
    core = CORES.get((facts["vendor_id"], family, model), f"family {family} model {model}")
    return f"{re.sub(r'[(](R|TM)[)]| Processor', '', facts['model name'])} ({core})"


def about() -> dict[str, str]:
    """The facts that go with every number."""
    import pumice

    config = pumice.show_config()
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} CPUs, L3 {l3_bytes() >> 20} MiB",
        "ISA": config["isa"],
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "BLAS of NumPy": blas(),
        "cold": f"copies worth {cold_bytes() >> 20} MB take turns",
        "import": import_cost(),
        "versions": f"pumice {config['version']} ({config['compiler']}), NumPy {np.__version__}, "
        f"{', '.join(map(version, PEERS))}, Python {platform.python_version()}",
    }


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def blas() -> str:
    """Which OpenBLAS kernel a worker's NumPy runs, as threadpoolctl sees it."""
    code = "import json, numpy, threadpoolctl; print(json.dumps(threadpoolctl.threadpool_info()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(1), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return "unknown (threadpoolctl is not installed)"
    pools = [pool for pool in json.loads(done.stdout) if pool["user_api"] == "blas"]
    unset = [name for name in SLOWING_VARIABLES if name in os.environ]
    note = f", {' and '.join(unset)} unset for the workers" if unset else ""
    return ", ".join(f"{p['internal_api']} {p['version']} {p.get('architecture', '')}" for p in pools) + note


def import_cost() -> str:
    """What ``import pumice`` adds to ``import numpy``, each in a process of its own."""
    code = "import time, numpy; start = time.perf_counter(); import pumice; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    runs = [float(subprocess.run(command, env=environment, capture_output=True, text=True).stdout) for _ in range(9)]
    return f"{np.median(runs) * 1e3:.0f} ms above NumPy (median of {len(runs)} processes)"
