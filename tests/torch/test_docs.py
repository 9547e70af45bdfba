"""Every example in a docstring of the bridge runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pumice.torch

MODULES = [found.name for found in pkgutil.iter_modules(pumice.torch.__path__, "pumice.torch.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", sorted(pumice.torch.__all__))
def test_public_functions_and_classes_have_an_example(name: str) -> None:
    found = doctest.DocTestFinder().find(getattr(pumice.torch, name), name)
    assert any(test.examples for test in found), f"{name} has no example"
