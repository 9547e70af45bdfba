"""Layers whose weight is a CompactArray: they compute what torch's own compute with the decoded weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pumice.errors import FormatError, SchemeError
from pumice.layouts import CompactArray, from_parts
from pumice.torch.operators import Slot

SCHEME = "scheme"  # in a state dict, beside the parts: the scheme's text as bytes


def as_tensor(part: np.ndarray[Any, Any], dtype: str) -> Tensor:
    """A part as torch has it: BF16 patterns as bfloat16; a copy, since torch knows no read-only memory."""
    copied = torch.from_numpy(np.array(part))
    return copied.view(torch.bfloat16) if dtype == "BF16" else copied


def as_part(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The inverse of `as_tensor`."""
    stored = tensor.detach().cpu().contiguous()
    array: np.ndarray[Any, Any] = (stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored).numpy()
    return array.copy()


class CompactModule(nn.Module):
    """What the layers share: one compact weight, known to the operators, and in a state dict as plain tensors.

    A state dict holds the parts of `array` (``weight_packed``, ``weight_scale``, ...: the names they have in files) and
    ``weight_scheme``, the text of the scheme as bytes. They are made when asked for: in memory there is one copy, in a
    file one of a weight that is tied. `to` changes the dtype that the layer answers in, never what is stored.
    """

    _like: Tensor

    def __init__(self, array: CompactArray, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._slot = Slot(array)
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)  # goes where the model is sent

    @property
    def array(self) -> CompactArray:
        """The weight."""
        return self._slot.array

    def tie(self, other: CompactModule) -> None:
        """Share the weight of another layer: its array now, and any that is loaded into either later."""
        if self.array.shape != other.array.shape:
            raise ValueError(f"other: expected a weight of shape {self.array.shape}, got {other.array.shape}")
        self._slot = other._slot

    @property
    def weight(self) -> Tensor:
        """The decoded weight: a new tensor at each call, which has no gradient."""
        decoded: Tensor = torch.ops.pumice.decoded(self._slot.number, *self.array.shape)
        return decoded.to(self._like.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for part, tensor in self._tensors().items():
            destination[f"{prefix}weight_{part}"] = tensor

    def _tensors(self) -> dict[str, Tensor]:
        """The parts and the scheme; the same tensors as before while somebody holds those."""
        parts = {**self.array.parts(), SCHEME: np.frombuffer(self.array.scheme.encode(), np.uint8)}
        found = {}
        for part, stored in parts.items():
            dtype = "U8" if part == SCHEME else self.array.part_dtype(part)
            tensor = self._slot.given.get(part)
            found[part] = as_tensor(stored, dtype) if tensor is None else tensor
        self._slot.given.update(found)
        return found

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        head = f"{prefix}weight_"
        found = {key[len(head) :]: value for key, value in state_dict.items() if key.startswith(head)}
        rest = {key: value for key, value in state_dict.items() if not key.startswith(head)}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)  # type: ignore[no-untyped-call]
        scheme = found.pop(SCHEME, None)
        if scheme is None:
            missing_keys += [f"{head}{part}" for part in (*self.array.parts(), SCHEME) if part not in found]
            return
        try:
            text = bytes(scheme.tolist()).decode()
            array = from_parts(text, self.array.shape, {part: as_part(value) for part, value in found.items()})
        except (FormatError, SchemeError, ValueError) as error:
            error_msgs.append(f"{prefix}weight: {error}")
            return
        self._slot.put(array)

    def _multiply(self, x: Tensor, bias: Tensor | None, activations: str) -> Tensor:
        if x.device.type != "cpu":
            raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
        rows = self.array.shape[0]
        y: Tensor = torch.ops.pumice.linear(x, self._slot.number, rows, bias, activations)
        return y


class CompactLinear(CompactModule):
    """`torch.nn.Linear` with a compact weight.

    Parameters
    ----------
    array : CompactArray (out_features, in_features)
    bias : Parameter (out_features,), optional
    activations : {"int16", "int8", "float32"}
        As in `pumice.linear`.
    dtype : torch.dtype
        Of `weight` for code that reads it; the output has that of x.

    Examples
    --------
    >>> import torch, pumice as pm
    >>> layer = CompactLinear(pm.compress(torch.eye(32).numpy(), "int8"))
    >>> layer(torch.ones(2, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self, array: CompactArray, bias: nn.Parameter | None = None, *, activations: str = "int16",
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(array, dtype)
        self.out_features, self.in_features = array.shape
        self.bias = bias
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.bias, self.activations)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.array.scheme}"


class CompactEmbedding(CompactModule):
    """`torch.nn.Embedding` with a compact table: rows are decoded as they are asked for.

    Parameters
    ----------
    array : CompactArray (num_embeddings, embedding_dim)
    padding_idx : int, optional
        Kept for code that reads it; a fixed table learns nothing there or elsewhere.
    dtype : torch.dtype
        Of the output.

    Examples
    --------
    >>> import torch, pumice as pm
    >>> table = CompactEmbedding(pm.compress(torch.eye(32).numpy(), "int8"))
    >>> table(torch.tensor([[0, 31]])).shape
    torch.Size([1, 2, 32])
    """

    def __init__(
        self, array: CompactArray, padding_idx: int | None = None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(array, dtype)
        self.num_embeddings, self.embedding_dim = array.shape
        self.padding_idx = padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = torch.ops.pumice.rows(ids, self._slot.number, self.embedding_dim)
        return found.to(self._like.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.array.scheme}"


class CompactConv(CompactModule):
    """`torch.nn.Conv1d` or `Conv2d` of one group with a compact kernel: unfolded patches of x are rows of a product.

    Parameters
    ----------
    array : CompactArray (out_channels, in_channels * kernel_size)
    like : torch.nn.Conv1d or torch.nn.Conv2d
        The layer it stands for: bias, stride, padding and dilation are its.
    activations : {"int16", "int8", "float32"}

    Examples
    --------
    >>> import torch, pumice as pm
    >>> conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    >>> layer = CompactConv(pm.compress(conv.weight.detach().reshape(8, 36).numpy(), "int8"), conv)
    >>> layer(torch.ones(1, 4, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(self, array: CompactArray, like: nn.Conv1d | nn.Conv2d, *, activations: str = "int16") -> None:
        super().__init__(array, like.weight.dtype)
        self.bias, self.activations = like.bias, activations
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.stride, self.dilation, self.padding_mode = like.stride, like.dilation, like.padding_mode
        self.padding, self._kernel_shape = like.padding, like.weight.shape
        self._pads = _pads(like)

    @property
    def weight(self) -> Tensor:
        return super().weight.reshape(self._kernel_shape)

    def forward(self, x: Tensor) -> Tensor:
        spatial = len(self.kernel_size)
        batched = x.dim() == spatial + 2
        padded = _padded(x if batched else x[None], self._pads, self.padding_mode)
        unfolded = _unfolded(padded, self.kernel_size, self.dilation, self.stride)
        y = self._multiply(unfolded.transpose(1, 2), self.bias, self.activations).transpose(1, 2)
        lengths = [
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(padded.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        y = y.reshape(y.shape[0], self.out_channels, *lengths)
        return y if batched else y[0]

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {self.array.scheme}"


def patches(x: Tensor, like: nn.Conv1d | nn.Conv2d) -> Tensor:
    """What each output of a convolution is a product with: (batch, in_channels * kernel_size, places)."""
    return _unfolded(_padded(x, _pads(like), like.padding_mode), like.kernel_size, like.dilation, like.stride)


def _padded(x: Tensor, pads: tuple[int, ...], mode: str) -> Tensor:
    return F.pad(x, pads, "constant" if mode == "zeros" else mode)


def _unfolded(padded: Tensor, sizes: Any, dilation: Any, stride: Any) -> Tensor:
    lift = (1,) * (2 - len(sizes))  # ones before the sizes make a plane of a line
    plane = padded if len(sizes) == 2 else padded[:, :, None]
    return F.unfold(plane, lift + sizes, dilation=lift + dilation, stride=lift + stride)


def _pads(like: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """What torch.nn.functional.pad takes: the last dimension first, before and after."""
    found: list[int] = []
    for i in reversed(range(len(like.kernel_size))):
        if like.padding == "same":
            total = like.dilation[i] * (like.kernel_size[i] - 1)
            found += [total // 2, total - total // 2]
        else:
            one = 0 if like.padding == "valid" else int(like.padding[i])
            found += [one, one]
    return tuple(found)
