"""Conventions: how tensors make up a weight. One file each; they are asked in the order of the imports below."""

from __future__ import annotations

from pumice.checkpoint.conventions import manifest as _manifest  # noqa: F401 - first: it knows its own tensors by name

# isort: split
from pumice.checkpoint.conventions import awq as _awq  # noqa: F401
from pumice.checkpoint.conventions import compressed_tensors as _compressed_tensors  # noqa: F401
from pumice.checkpoint.conventions import float8_blocks as _float8_blocks  # noqa: F401
from pumice.checkpoint.conventions import gptq as _gptq  # noqa: F401
from pumice.checkpoint.conventions import scipy_sparse as _scipy_sparse  # noqa: F401
from pumice.checkpoint.conventions import sparse_bitmask as _sparse_bitmask  # noqa: F401
from pumice.checkpoint.conventions import torch_prune as _torch_prune  # noqa: F401
from pumice.checkpoint.conventions.base import CONVENTIONS, Convention, Found, modules, register

__all__ = ["CONVENTIONS", "Convention", "Found", "modules", "register"]
