"""int4: two codes a byte, the even column in the low nibble."""

from __future__ import annotations

from pumice.values.base import register
from pumice.values.integer import Integer

register(Integer(4))
