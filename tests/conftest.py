"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pumice._core import native


@pytest.fixture(params=native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each ISA of this machine in turn; products inside the test run on it."""
    before = native.get_isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture(params=[1, 2], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, then two."""
    before = native.get_num_threads()
    native.set_num_threads(request.param)
    yield request.param
    native.set_num_threads(before)


# They wait for disks, compilers and processes: first, so that they are not what is left when all else is done.
SLOW = ("promises", "test_symbols.py", "test_threads.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.path.parts for name in SLOW))
