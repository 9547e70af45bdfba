"""The results of bench/conversion.py as tables and a plot, and what a terabyte costs by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sparse_tables import table

from pumice.conversion import CHUNK_BYTES

TERABYTE = 1e12  # bytes of float16
CHUNK = CHUNK_BYTES // 2  # bytes of float16 in a chunk
NODES = (1, 4, 16)
CPUS = (2, 32)  # of a node
NETWORK = 1.25e9  # bytes a second that a node reads from the storage, and as many that it writes: 10 Gbit/s
STORAGE = 5e9  # bytes a second, read and written, that the storage has for all nodes
SYNC = 5e-3  # seconds that the storage takes to make a file, a name or a line safe
IN_MEMORY = ", target in /dev/shm"
KILLED = {"nearest": "int4-g32, to nearest", "gptq": "int4-g32, GPTQ", "sparse": "csr+int8"}


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """A block for each part that was run, and what a terabyte costs if all that it takes is known."""
    where = dict(found["about"])
    where["versions"] = ", ".join(part for part in where["versions"].split(", ") if "not installed" not in part)
    made = {"about": "\n".join(f"- {key}: {where[key]}" for key in ("machine", "ISA", "date", "versions"))}
    tables = {"disk": disk, "memory": memory, "limit": limit, "ways": ways, "kills": kills}
    made |= {name: write(found[name]) for name, write in tables.items() if name in found}
    if "ways" in found:
        rates = Rates.of(found["ways"])
        made |= {"rates": rates.table(), "cost": cost(rates)}
    if "memory" in found:
        made["here"] = here(found["memory"]["zeros, nine times the size"])
    return made


def gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f}"


def disk(found: Mapping[str, float]) -> str:
    return (
        f"The disk alone: writes {found['write']:.2f} GB/s (2 GB and a sync), reads {found['read']:.2f} GB/s (nothing "
        f"in the page cache), {found['sync ms']:.2g} ms for a line of 200 bytes and a sync."
    )


def memory(found: Mapping[str, Any]) -> str:
    """Rates and peaks of each case; MB of 10^6 bytes."""
    rows = [[name, *memory_cells(run)] for name, run in found.items() if name != "budget"]
    budget = f"`--max-memory {found['budget']}`, {found['budget'] / 1e6:.0f} MB:"
    return budget + "\n\n" + table(["", *MEMORY], rows)


MEMORY = (
    "GB read", "GB written", "seconds", "GB/s read", "own pages, MB at most", "pages of files, MB at most",
    "resident, MB at most", "address space, MB at most",
)  # fmt: skip


def memory_cells(run: Mapping[str, Any]) -> list[str]:
    _, own, files = np.array(run["curve"]).max(axis=0)
    peaks = [own, files, run["peaks"]["resident"], run["peaks"]["address space"]]
    rates = [f"{run['seconds']:.1f}", f"{run['source'] / run['seconds'] / 1e9:.2f}"]
    return [gb(run["source"]), gb(run["target"]), *rates, *(f"{peak:.0f}" for peak in peaks)]


def limit(found: Mapping[str, Any]) -> str:
    rows = [[f"zeros, {found['limit'] / 1e6:.0f} MB of address space", *memory_cells(found)]]
    refused = f"The same limit refuses a map of the source: `{' '.join(found['refused'])}`."
    return table(["", *MEMORY], rows) + "\n\n" + refused


def ways(found: Mapping[str, Any]) -> str:
    """Median seconds of each way, its speed beside the first, and the one SHA-256."""
    runs = found["runs"]
    sums = {run["sha256"] for several in runs.values() for run in several}
    if len(sums) != 1:
        raise SystemExit(f"ways: expected one SHA-256, got {sums}")
    first = median(next(iter(runs.values())))
    rows = []
    for name, several in runs.items():
        seconds = median(several)
        spread = f"{min(run['seconds'] for run in several):.2f} to {max(run['seconds'] for run in several):.2f}"
        rate = found["source"] / seconds / 1e9
        rows.append([name, f"{seconds:.2f}", spread, f"{rate:.2f}", f"{first / seconds:.2f}"])
    count = sum(map(len, runs.values()))
    said = (
        f"{gb(found['source'])} GB of normal weights to {gb(found['target'])} GB on {found['cpus']} CPUs, the source "
        f"in the page cache. All {count} outputs have one SHA-256, `{sums.pop()}`. "
        f"Medians of {count // len(runs)} rounds:"
    )
    return said + "\n\n" + table(["", "seconds", "of", "GB/s read", "speed beside the first"], rows)


def median(runs: list[Mapping[str, Any]], what: str = "seconds") -> float:
    return float(np.median([run[what] for run in runs]))


def kills(found: Mapping[str, Any]) -> str:
    rows = []
    for recipe, run in found.items():
        count = sum(run["stops"].values())
        cells = [count, run["conversions"], run["chunks"], f"{run['begun again'] / count:.2f}", run["begun at most"]]
        cells += [f"{run['encoded again'] / count:.2f}", len(run["broken"])]
        rows.append([KILLED[recipe], *map(str, cells)])
    headings = [
        "", "SIGKILLs", "conversions", "chunks of each", "begun again, a kill", "at most", "of them encoded already",
        "broken promises",
    ]  # fmt: skip
    return table(headings, rows)


# A terabyte.


@dataclass(frozen=True)
class Rates:
    """What was measured with the source in the page cache and the target in memory: what the CPU costs."""

    encode: float  # bytes of the source a second that one CPU reads, encodes and writes as chunks
    commit: float  # bytes of the target a second that a commit puts together
    share: float  # bytes of the target for each of the source

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Rates:
        runs = next(runs for name, runs in found["runs"].items() if name.startswith("tasks") and IN_MEMORY in name)
        encode = found["source"] / median(runs, "tasks") / found["cpus"]
        return cls(encode, found["target"] / median(runs, "commit"), found["target"] / found["source"])

    def table(self) -> str:
        rows = [
            ["one CPU reads, encodes and writes chunks", f"{self.encode / 1e9:.2f} GB/s of source"],
            [
                "a commit checks chunks, and puts them together with their SHA-256",
                f"{self.commit / 1e9:.2f} GB/s of target",
            ],
            ["bytes of target for each of source", f"{self.share:.3f}"],
        ]
        return table(["measured, with the source in the page cache and the target in memory", ""], rows)

    def encoding(self, nodes: int, cpus: int) -> dict[str, float]:
        """Seconds of all tasks by what might bind them, which overlap. A CPU waits for two syncs of each chunk."""
        return {
            "CPU": (TERABYTE / self.encode + TERABYTE / CHUNK * 2 * SYNC) / (nodes * cpus),
            "network": TERABYTE / (nodes * NETWORK),
            "storage": TERABYTE * (1 + self.share) / STORAGE,
        }

    def putting_together(self) -> float:
        """Seconds of the commit, on one node: each chunk comes over the network, and is then put into its shard."""
        return TERABYTE * self.share * (1 / self.commit + 1 / NETWORK)


def cost(rates: Rates) -> str:
    rows = []
    for cpus in CPUS:
        for nodes in NODES:
            bounds = rates.encoding(nodes, cpus)
            binding = max(bounds, key=lambda name: bounds[name])
            encoding, commit = bounds[binding], rates.putting_together()
            bound = binding if encoding >= commit else "the commit"
            cells = [minutes(encoding), binding, minutes(commit), minutes(encoding + commit), bound]
            hours = (nodes * encoding + commit) / 3600
            together = max(encoding, commit, TERABYTE / CHUNK * SYNC)  # one process keeps the journal of all
            rows.append([str(nodes), str(cpus), *cells, f"{hours:.1f}", minutes(together)])
    headings = [
        "nodes", "CPUs of each", "tasks", "bound by", "commit", "in all", "most of it", "node-hours",
        "with an executor or Dask instead",
    ]  # fmt: skip
    return table(headings, rows)


def here(run: Mapping[str, Any]) -> str:
    rate = run["source"] / run["seconds"]
    return (
        f"This machine with its disk, at the {rate / 1e9:.2f} GB/s of the large checkpoint: {minutes(TERABYTE / rate)}."
    )


def minutes(seconds: float) -> str:
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Memory of the small and the large checkpoint over the time of each: own pages, and pages of files above them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    runs = {"zeros, nine times the size": "#74c39c", "normal weights": "#a8482e"}
    for name, color in runs.items():  # the short one above the long one
        run = found["memory"][name]
        seconds, own, files = np.array(run["curve"]).T
        size = f"{gb(run['source'])} GB"
        axes.plot(seconds, own + files, color=color, linewidth=1, label=f"{size}: resident")
        axes.plot(seconds, own, color=color, linewidth=1, linestyle=":", label=f"{size}: its own pages")
    axes.set(xlabel="seconds", ylabel="MB", xlim=(0, None), ylim=(0, 1.5 * max(axes.get_ylim())))
    axes.set_title(f"--max-memory: {found['memory']['budget'] / 1e6:.0f} MB")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
