"""int8: one code a byte."""

from __future__ import annotations

from pumice.values.base import register
from pumice.values.integer import Integer

register(Integer(8))
