"""Which weights stay, of each member of a collection; and the pairs of weights and masks that torch keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.members import is_collection, is_weight, members, rebuild

BITS, SHAPE = "_bitmask", "_shape"
ORIGINAL, MASK = "_orig", "_mask"


class Masks(Mapping[Any, NDArray[np.bool_]]):
    """Masks by name, or by position in a list: bool arrays, True where a weight stays.

    A single mask is a bool ndarray, with NumPy's operators. These never change; ``&``, ``|`` and ``~`` make new ones.

    Parameters
    ----------
    masks : mapping of key to array_like of bool

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> weights = {"fc": np.array([[1.0, -3.0], [0.5, 2.0]]), "bias": np.zeros(2)}
    >>> pruned, masks = pm.prune(weights, sparsity=0.5, return_mask=True)
    >>> masks
    <Masks of 1 weights, density 0.5>
    >>> masks.apply({"fc": np.ones((2, 2)), "bias": np.ones(2)})["fc"]    # after a step of training
    array([[0., 1.],
           [0., 1.]])
    >>> (masks & pm.Masks({"fc": np.eye(2) > 0}))["fc"]
    array([[False, False],
           [False,  True]])

    One bit a weight in files:

    >>> import io
    >>> _ = pm.save(file := io.BytesIO(), masks.pack())    # or a path
    >>> pm.Masks.unpack(pm.load(file.getvalue())) == masks
    True
    """

    def __init__(self, masks: Mapping[Any, Any]) -> None:
        self._masks: dict[Any, NDArray[np.bool_]] = {}
        for key, mask in masks.items():
            array = np.array(mask)
            if array.dtype != bool:
                raise TypeError(f"masks[{key!r}]: expected bool, got {array.dtype}")
            array.setflags(write=False)
            self._masks[key] = array

    @classmethod
    def of(cls, w: Any) -> Self:
        """The non-zeros of each weight of a mapping or list."""
        dense = {key: _dense(member) for key, (_, member) in members(w).items() if is_weight(member)}
        return cls({key: array != 0 for key, array in dense.items()})

    def apply(self, w: Any, *, in_place: bool = False) -> Any:
        """Set what is masked out to 0.

        Parameters
        ----------
        w : mapping or list of arrays
            Members without a mask pass through as the same object.
        in_place : bool
            Write to the ndarrays of w, as training loops do, instead of making new ones.

        Raises
        ------
        ValueError
            A mask without a member, or of another shape.
        """
        if not is_collection(w):
            raise TypeError(f"w: expected a mapping or list, got {type(w).__name__}; one array: w * mask")
        found = members(w)
        missing = [key for key in self if key not in found]
        if missing:
            raise ValueError(f"w: expected a member {missing[0]!r}, which has a mask, got none")
        results = {}
        for key, (label, member) in found.items():
            results[key] = member
            if key not in self:
                continue
            mask = self[key]
            array = member if in_place else _dense(member)
            if array.shape != mask.shape:
                raise ValueError(f"{label}: expected shape {mask.shape} as its mask, got {array.shape}")
            if in_place and not isinstance(array, np.ndarray):
                raise TypeError(f"{label}: expected an ndarray to write to, got {type(array).__name__}")
            if in_place:
                array[~mask] = 0
            else:
                results[key] = np.where(mask, array, array.dtype.type(0))
        return rebuild(w, results)

    @property
    def density(self) -> float:
        """The share of weights that stay; 1 without any."""
        size = sum(mask.size for mask in self.values())
        return sum(int(np.count_nonzero(mask)) for mask in self.values()) / size if size else 1.0

    def __and__(self, other: Masks) -> Masks:
        return self._combined(other, np.logical_and)

    def __or__(self, other: Masks) -> Masks:
        return self._combined(other, np.logical_or)

    def __invert__(self) -> Masks:
        return Masks({key: ~mask for key, mask in self.items()})

    def _combined(self, other: Masks, operator: np.ufunc) -> Masks:
        if not isinstance(other, Masks):
            return NotImplemented
        if self.keys() != other.keys():
            key = next(iter(self.keys() ^ other.keys()))
            raise ValueError(f"masks: expected the same members, got {key!r} on one side only")
        for key, mask in self.items():
            if mask.shape != other[key].shape:
                raise ValueError(f"masks[{key!r}]: expected one shape, got {mask.shape} and {other[key].shape}")
        return Masks({key: operator(mask, other[key]) for key, mask in self.items()})

    def pack(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: ``NAME_bitmask``, uint8 (rows, ceil(cols / 8)) as the layout bitmask has it, and
        ``NAME_shape``; position i of a list is called ``[i]``."""
        arrays: dict[str, NDArray[Any]] = {}
        for key, mask in self.items():
            name = f"[{key}]" if isinstance(key, int) else str(key)
            rows = mask.reshape(mask.shape[0], math.prod(mask.shape[1:]))
            arrays[name + BITS] = np.packbits(rows, axis=1, bitorder="little")
            arrays[name + SHAPE] = np.array(mask.shape, np.int64)
        return arrays

    @classmethod
    def unpack(cls, arrays: Mapping[str, Any]) -> Self:
        """The inverse of `pack`; raises FormatError for what it does not write."""
        masks: dict[Any, NDArray[np.bool_]] = {}
        for part in arrays:
            name = part.removesuffix(BITS)
            if part.endswith(SHAPE):
                continue
            if name == part or name + SHAPE not in arrays:
                raise FormatError(None, part, "masks: NAME_bitmask and NAME_shape", part)
            bits, shape = np.asarray(arrays[part]), tuple(np.asarray(arrays[name + SHAPE]).reshape(-1).tolist())
            if len(shape) < 2 or any(not isinstance(n, int) or n < 0 for n in shape):
                raise FormatError(None, name + SHAPE, "two or more sizes", shape)
            rows, cols = shape[0], math.prod(shape[1:])
            if bits.dtype != np.uint8 or bits.shape != (rows, -(-cols // 8)):
                rule = f"uint8 of shape {(rows, -(-cols // 8))}"
                raise FormatError(None, part, rule, f"{bits.dtype} of shape {bits.shape}")
            position = re.fullmatch(r"\[(\d+)\]", name)
            mask = np.unpackbits(bits, axis=1, count=cols, bitorder="little").astype(bool).reshape(shape)
            masks[int(position[1]) if position else name] = mask
        return cls(masks)

    def __getitem__(self, key: Any) -> NDArray[np.bool_]:
        return self._masks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(np.array_equal(mask, other[key]) for key, mask in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Masks of {len(self)} weights, density {self.density:.4g}>"


def _dense(w: Any) -> NDArray[Any]:
    if isinstance(w, CompactArray):
        return w.to_dense()
    return w.toarray() if hasattr(w, "tocsr") else np.asarray(w)


def masked_pairs(names: Collection[object]) -> dict[str, tuple[str, str]]:
    """Name -> (X_orig, X_mask) of the pairs that `torch.nn.utils.prune` keeps, in the order of the names.

    Examples
    --------
    >>> masked_pairs(["fc.weight_orig", "fc.weight_mask", "fc.bias"])
    {'fc.weight': ('fc.weight_orig', 'fc.weight_mask')}
    """
    pairs = {}
    for original in names:
        if not isinstance(original, str) or not original.endswith(ORIGINAL):
            continue
        name = original.removesuffix(ORIGINAL)
        mask = name + MASK
        if mask in names:
            pairs[name] = original, mask
    return pairs
