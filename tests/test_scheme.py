"""The grammar of schemes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pumice as pm
from pumice.scheme import Scheme, legal_table

LEGAL = [
    "float32", "float16", "bfloat16", "int8", "int4", "int4-g16", "int4-g128", "int4-g32-asym", "int8-asym", "int8-g64",
    "int8-min", "int4-g32-min", "int2-g16-min", "csr", "csr+int8", "bsr-4x4", "bsr-16x1+int8", "bsr-1x1",
]  # fmt: skip


@pytest.mark.parametrize("text", LEGAL)
def test_a_legal_scheme_prints_as_it_was_written(text: str) -> None:
    scheme = Scheme.parse(text)
    assert str(scheme) == text
    assert Scheme.parse(scheme) is scheme


@pytest.mark.parametrize(
    ("text", "short"),
    [("dense", "float32"), ("dense+int4-g32", "int4-g32"), ("csr+float32", "csr"), ("dense+float32", "float32")],
)
def test_what_is_implied_is_not_printed(text: str, short: str) -> None:
    assert str(Scheme.parse(text)) == short


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "neither a layout nor a values codec"),
        ("int7", "'int7' is neither"),
        ("int4-g24", "a power of two >= 16, not 24"),
        ("int4-g8", "a power of two >= 16, not 8"),
        ("int4-g0", "no option 'g0'"),
        ("int4-g032", "no option"),
        ("int4-asym-g32", "no option 'g32' there"),
        ("int4-g32-g32", "no option"),
        ("int4-asym-asym", "no option"),
        ("int4-g32-asym-min", "no option 'min' there; it is written int4[-gG][-asym|-min]"),
        ("int4-min-asym", "no option 'asym' there"),
        ("int4-min-min", "no option 'min' there"),
        ("int4-min-g32", "no option 'g32' there"),
        ("float16-min", "no option 'min' there; it is written float16"),
        ("float32-g32", "no option"),
        ("csr+int4", "csr stores float32 or int8, not int4"),
        ("csr+int8-g32", "one symmetric scale per row"),
        ("csr+int8-asym", "csr is symmetric"),
        ("csr+int8-min", "csr is symmetric"),
        ("bsr", "neither"),
        ("bsr-0x4", "neither"),
        ("bsr-4x4x4", "neither"),
        ("bsr-4x٤", "neither"),
        ("int8+csr", "'int8' is not a layout"),
        ("csr+", "'' is neither"),
        ("csr+int8+int8", "neither"),
        (" int8", "neither"),
        ("INT8", "neither"),
    ],
)
def test_anything_else_is_an_error_that_prints_the_legal_table(text: str, why: str) -> None:
    with pytest.raises(pm.SchemeError) as caught:
        Scheme.parse(text)
    assert why in str(caught.value)
    assert legal_table() in str(caught.value)


def test_a_scheme_is_text() -> None:
    with pytest.raises(pm.SchemeError, match="expected text such as"):
        pm.compress([[1.0]], 4)


@given(st.text(max_size=20))
def test_text_parses_or_raises_a_scheme_error(text: str) -> None:
    try:
        scheme = Scheme.parse(text)
    except pm.SchemeError:
        return
    assert Scheme.parse(str(scheme)) == scheme
