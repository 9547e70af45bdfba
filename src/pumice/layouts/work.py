"""What a product does, as a layout tells the cost model (costs.py): bytes read, and operations by kernel."""

from __future__ import annotations

from dataclasses import dataclass

from pumice.scheme import Scheme


@dataclass(frozen=True)
class Step:
    """Arithmetic of one kernel: `operations` are multiplications and additions apart; of "decode", weights."""

    kernel: str
    operations: float


@dataclass(frozen=True)
class Work:
    """A product with a weight.

    Attributes
    ----------
    nbytes : float
        Bytes of weights that it reads.
    steps : tuple of Step
        What it computes, one after the other.
    activations, stored, bits, unit
        What throughput depends on: how x enters, layout and codec as a label, bits of a stored value, columns that
        share a scale or values that share an index.
    also : Work or None
        Another product whose result is added.
    """

    nbytes: float
    steps: tuple[Step, ...]
    activations: str
    stored: str
    bits: int
    unit: int
    also: Work | None = None


def label_of(scheme: Scheme) -> str:
    """Layout and codec, without the codec's options.

    Examples
    --------
    >>> import pumice
    >>> label_of(Scheme.parse("int4-g128")), label_of(Scheme.parse("bsr-4x4+int8"))
    ('dense int4', 'bsr-4x4 int8')
    """
    layout = str(Scheme(scheme.layout, scheme.numbers)) if scheme.numbers else scheme.layout
    return f"{layout} {scheme.values}"


def steps_of(kernel: str | None, stored: float, size: int, batch: int) -> tuple[Step, ...]:
    """The steps of a kernel over the stored values of a weight; without one, row panels are decoded for BLAS.

    Examples
    --------
    >>> steps_of("matmul_int", stored=32, size=64, batch=2)
    (Step(kernel='matmul_int', operations=128),)
    >>> steps_of(None, stored=32, size=64, batch=2)
    (Step(kernel='decode', operations=64), Step(kernel='BLAS', operations=256))
    """
    if kernel is None:
        return Step("decode", size), Step("BLAS", 2 * batch * size)
    return (Step(kernel, 2 * batch * stored),)
