"""Values codecs: how each stored value is written. One file a codec; the imports below register them."""

from __future__ import annotations

from pumice.values import bfloat16, float8, float16, float32, int8, narrow  # noqa: F401
from pumice.values.base import CODECS, Codec, codec_of, register

__all__ = ["CODECS", "Codec", "codec_of", "register"]
