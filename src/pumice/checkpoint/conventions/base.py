"""What a convention is: it finds the arrays that consist of several tensors, from names, dtypes and shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from pumice.checkpoint.base import Json, TensorInfo
from pumice.checkpoint.container import Container
from pumice.layouts import CompactArray


@dataclass(frozen=True)
class Found:
    """An array that a convention found in a container.

    Parameters
    ----------
    name
        What users call it: ``fc.weight``, also where the file has ``fc.qweight``.
    info
        Its shape, scheme (or dtype, if it is a plain array), parts, bytes (of a plain array its own).
    tensors
        The tensors that it consists of, at least one; they are no arrays of their own.
    read
        Makes the array, a plain one as `info.dtype` is stored (BF16 and F8 as patterns). Checks all that was not
        checked when it was found; its FormatErrors need no path.
    """

    name: str
    info: TensorInfo
    tensors: tuple[str, ...]
    read: Callable[[], CompactArray | NDArray[Any]]


class Convention(ABC):
    """One way in which tensors make up a weight."""

    name: ClassVar[str]

    @abstractmethod
    def find(self, container: Container, free: Collection[str]) -> Iterable[Found]:
        """The arrays of this convention among `free`, the tensors that no convention before has claimed.

        Reads no tensors, but for a few numbers such as a shape.

        Raises
        ------
        FormatError
            Tensors that are of this convention and break its rules, or contradict the container's `config`.
        """

    def plain(self, container: Container) -> Mapping[str, Mapping[str, Json]]:
        """Tensors that are known to be arrays themselves, whatever others would find in their names; with the notes
        that the file has on them."""
        return {}


CONVENTIONS: list[Convention] = []


def register(convention: type[Convention]) -> type[Convention]:
    """Add a convention to those that every container is asked for; a class decorator."""
    CONVENTIONS.append(convention())
    return convention


def modules(names: Collection[str], *suffixes: str) -> Iterator[str]:
    """The prefixes, sorted, that have a tensor for each of the suffixes.

    Examples
    --------
    >>> list(modules({"fc.qweight", "fc.scales", "b.qweight"}, "qweight", "scales"))
    ['fc.']
    """
    for name in sorted(names):
        prefix = name.removesuffix(suffixes[0])
        if name.endswith(suffixes[0]) and all(prefix + suffix in names for suffix in suffixes[1:]):
            yield prefix
