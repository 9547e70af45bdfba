"""int2 to int6: codes in a bit stream along the row; int4 has the even column of two in the low nibble."""

from __future__ import annotations

from pumice.values.base import register
from pumice.values.integer import Integer

for bits in (2, 3, 4, 5, 6):
    register(Integer(bits))
