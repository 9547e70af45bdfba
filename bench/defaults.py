"""Measure the profiles that pumice ships, one an ISA of this machine: ``python bench/defaults.py [--threads N]``.

Rewrites src/pumice/profiles.json. NumPy's BLAS is held to what a machine with no more than the ISA has. The best of
several calibrations counts: whatever disturbs only slows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import clean_environment

TARGET = Path(__file__).parents[1] / "src" / "pumice" / "profiles.json"
CORES = {"scalar": "Nehalem", "avx2": "Haswell"}  # of OpenBLAS; others run what the CPU has
CODE = "import json; from pumice.calibration import calibrate; print(json.dumps(calibrate().to_json()))"


def measure(isa: str, threads: int) -> dict[str, Any]:
    environment = clean_environment(threads) | {"PUMICE_ISA": isa}
    if isa in CORES:
        environment["OPENBLAS_CORETYPE"] = CORES[isa]
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def best(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each number the one that is fastest."""
    first = tables[0] | {"cpu": "any", "version": "any"}
    for other in tables[1:]:
        for mine, its in zip(first["bandwidths"], other["bandwidths"], strict=True):
            mine["gbytes"] = max(mine["gbytes"], its["gbytes"])
        for mine, its in zip(first["rates"], other["rates"], strict=True):
            mine["gops"] = {batch: max(value, its["gops"][batch]) for batch, value in mine["gops"].items()}
        for name, value in other["overheads"].items():
            first["overheads"][name] = min(first["overheads"][name], value)
    return first


def main() -> None:
    import pumice

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="and 1")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--isas", nargs="+", default=pumice.show_config()["isas"], help="of this machine; all of them")
    options = parser.parse_args()
    tables = json.loads(TARGET.read_text("utf-8")) if TARGET.exists() else {}
    for isa in options.isas:
        print(f"{isa} ...", file=sys.stderr)
        tables[isa] = best([measure(isa, options.threads) for _ in range(options.runs)])
    lines = [f" {json.dumps(isa)}: {one_a_line(table)}" for isa, table in tables.items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def one_a_line(table: dict[str, Any]) -> str:
    """JSON with a line for each bandwidth and rate: changes can be read."""
    parts = []
    for name, value in table.items():
        if isinstance(value, list):
            items = ",\n".join(f"   {json.dumps(item)}" for item in value)
            parts.append(f"  {json.dumps(name)}: [\n{items}\n  ]")
        else:
            parts.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n }"


if __name__ == "__main__":
    main()
