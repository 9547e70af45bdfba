"""What a machine does: bytes read, operations of each kernel, the cost of a call. Measured here, or shipped.

A profile feeds the cost model (costs.py). ``pumice bench --calibrate`` measures one and keeps it under
``$XDG_CACHE_HOME/pumice``, by CPU, ISA and version of pumice; without it the defaults of the ISA in profiles.json hold.

What files need is imported by the functions that have to do with them, since everybody who imports pumice imports this.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pumice._core import native

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS = os.path.join(os.path.dirname(__file__), "profiles.json")
DEFAULT_ISA = "scalar"  # its defaults stand in for those of an ISA that has none


class Throughput(Protocol):
    """What throughput depends on besides the kernel, the threads and the batch: see `pumice.layouts.work.Work`."""

    @property
    def activations(self) -> str: ...
    @property
    def stored(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def unit(self) -> int: ...


@dataclass(frozen=True)
class Bandwidth:
    """GB/s at which weights that take `nbytes` together are read over and over."""

    nbytes: int
    threads: int
    gbytes: float


@dataclass(frozen=True)
class Rate:
    """What a kernel computes on weights that the cache holds.

    Attributes
    ----------
    kernel : str
        As a layout's `work` names its steps.
    activations : str
        How x enters.
    stored : str
        Layout and codec.
    bits : int
        Of a stored value.
    unit : int
        Columns that share a scale, or values that share an index.
    gops : mapping of int to float
        Batch -> 1e9 operations a second, multiplications and additions apart; of "decode", 1e9 weights.
    cold : mapping of int to mapping of int to float
        Bytes of a weight -> batch -> how many times what the cost model says a product with it from DRAM took.
        Empty: as it says.
    """

    kernel: str
    activations: str
    stored: str
    bits: int
    unit: int
    threads: int
    gops: Mapping[int, float]
    cold: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    def at(self, batch: int) -> float:
        """1e9 operations a second at a batch, interpolated between the measured ones."""
        return _between(self.gops, batch)

    def cold_at(self, nbytes: float, batch: int) -> float:
        """How many times what the cost model says a product with weights from DRAM takes.

        Between two sizes that were measured the product, not this factor, is a straight line in the bytes: part of it
        is what every product costs.
        """
        if not self.cold:
            return 1.0
        sizes = sorted(self.cold)
        nbytes = min(max(nbytes, sizes[0]), sizes[-1])
        products = [size * _between(self.cold[size], batch) for size in sizes]
        return float(np.interp(nbytes, sizes, products)) / nbytes


@dataclass(frozen=True)
class Profile:
    """A machine, or the defaults of an ISA.

    Attributes
    ----------
    cpu, isa, version : str
        What it holds for.
    source : str
        Where the numbers come from, for people.
    overheads : mapping of str to float
        Kernel -> seconds of a call that computes next to nothing.
    """

    cpu: str
    isa: str
    version: str
    source: str
    bandwidths: tuple[Bandwidth, ...]
    rates: tuple[Rate, ...]
    overheads: Mapping[str, float]

    def bandwidth(self, nbytes: float, threads: int) -> float:
        """GB/s for weights that take `nbytes` together, interpolated between the measured sizes; infinity is DRAM."""
        near = _nearest(threads, {b.threads for b in self.bandwidths})
        return _between({b.nbytes: b.gbytes for b in self.bandwidths if b.threads == near}, nbytes)

    def nearest(self, kernel: str, work: Throughput, threads: int) -> Rate | None:
        """Of what was measured of a kernel, the nearest: by activations, threads, what is stored, bits and unit."""

        def distance(rate: Rate) -> tuple[bool, float, bool, float, float]:
            return (
                rate.activations != work.activations,
                abs(math.log(rate.threads / threads)),
                rate.stored != work.stored,
                abs(math.log(rate.bits / work.bits)),
                abs(math.log(rate.unit / work.unit)),
            )

        return min((rate for rate in self.rates if rate.kernel == kernel), key=distance, default=None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: what the cache holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: Any) -> Profile:
        """The inverse; ValueError names what is wrong."""
        try:
            text = {name: _text(name, table[name]) for name in ("cpu", "isa", "version", "source")}
            bandwidths = tuple(
                Bandwidth(_count(b["nbytes"]), _count(b["threads"]), _positive("gbytes", b["gbytes"]))
                for b in table["bandwidths"]
            )
            rates = tuple(_rate(r) for r in table["rates"])
            overheads = {_text("kernel", k): _positive("overheads", v) for k, v in table["overheads"].items()}
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"profile: expected the fields of one, got {type(error).__name__}: {error}") from None
        if not bandwidths or not rates:
            raise ValueError("profile: expected bandwidths and rates, got none")
        return cls(**text, bandwidths=bandwidths, rates=rates, overheads=overheads)


def _rate(table: Any) -> Rate:
    gops = _by_batch("gops", table["gops"])
    cold = {_count(nbytes): _by_batch("cold", found) for nbytes, found in table.get("cold", {}).items()}
    kernel, activations, stored = (_text(name, table[name]) for name in ("kernel", "activations", "stored"))
    return Rate(
        kernel, activations, stored, _count(table["bits"]), _count(table["unit"]), _count(table["threads"]), gops, cold
    )


def _by_batch(name: str, table: Any) -> dict[int, float]:
    found = {_count(batch): _positive(name, value) for batch, value in table.items()}
    if not found:
        raise ValueError(f"{name}: expected at least one batch, got none")
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {value!r}")
    return value


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"profile: expected a count of at least 1, got {value!r}")
    return int(value)


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def _between(measured: Mapping[int, float], at: float) -> float:
    """A value at a point, a straight line in the logarithms of both; that of the first or last point beyond them."""
    low = max((point for point in measured if point <= at), default=min(measured))
    high = min((point for point in measured if point >= at), default=max(measured))
    if low >= high:
        return measured[high] if at <= low else measured[low]
    part = math.log(at / low) / math.log(high / low)
    return math.exp((1 - part) * math.log(measured[low]) + part * math.log(measured[high]))


def _nearest(wanted: int, there: Iterable[int]) -> int:
    return min(there, key=lambda n: abs(math.log(n / wanted)))


# Where profiles are kept.


def cpu_name() -> str:
    """The model of the CPU, as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cache_folder() -> Path:
    """Where pumice keeps what it can make anew."""
    from pathlib import Path

    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "pumice"


def cache_path(isa: str | None = None) -> Path:
    """The file of this machine's profile, whether it is there or not."""
    import hashlib

    from pumice import __version__

    isa = native.get_isa() if isa is None else isa
    name = hashlib.sha256(f"{cpu_name()}\n{isa}\n{__version__}".encode()).hexdigest()[:12]
    return cache_folder() / f"profile-{isa}-{name}.json"


def save_profile(profile: Profile) -> Path:
    """Keep a profile in the cache, whole or not at all; returns the file."""
    import json
    import tempfile

    path = cache_path(profile.isa)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, prefix=".profile-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(profile.to_json(), file, indent=1)
        os.replace(staged, path)
    except BaseException:
        os.unlink(staged)
        raise
    return path


def load_profile(isa: str | None = None) -> Profile:
    """This machine's profile, or the defaults of the ISA; a broken file in the cache is reported and not used.

    Examples
    --------
    >>> load_profile("scalar").isa
    'scalar'
    """
    import json

    from pumice import __version__

    isa = native.get_isa() if isa is None else isa
    path = cache_path(isa)
    try:
        profile = Profile.from_json(json.loads(path.read_text("utf-8")))
        if (profile.cpu, profile.isa, profile.version) != (cpu_name(), isa, __version__):
            raise ValueError("profile: expected one of this CPU, ISA and version, got another's")
        return profile
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        text = f"{path}: {error}; the shipped defaults are used; pumice bench --calibrate measures anew"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return default_profile(isa)


def default_profile(isa: str) -> Profile:
    """What is shipped for an ISA."""
    import json

    with open(DEFAULTS, encoding="utf-8") as file:
        tables = json.load(file)
    profile = Profile.from_json(tables.get(isa, tables[DEFAULT_ISA]))
    return replace(profile, source=f"shipped defaults of {profile.isa}; pumice bench --calibrate measures this machine")
