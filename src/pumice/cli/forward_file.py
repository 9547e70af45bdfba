"""``--forward FILE.py:FUNCTION``: what `calibrate` and `eval` run a model with."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pumice.errors import near

FUNCTION = "forward"
ABOUT = (
    "the forward, FUNCTION(weights, data, **options) -> functions without arguments, each of which runs a piece of the "
    "data; examples/llama.py and examples/minilm.py have one each"
)


def add_forward(command: argparse.ArgumentParser, samples: int | None) -> None:
    """The options that say what is run on what."""
    add = command.add_argument
    add("--forward", metavar="FILE.py[:FUNCTION]", type=_forward, required=True, help=f"{ABOUT} (FUNCTION: forward)")
    add("--data", metavar="PATH", type=Path, required=True, help="for the forward")
    add("--samples", metavar="N", type=int, default=samples, help=f"pieces, drawn (default: {samples or 'all'})")
    add("--seed", metavar="N", type=int, default=0, help="of the draw (default: 0)")
    add_set(command, "of the forward")


def add_set(command: argparse.ArgumentParser, what: str) -> None:
    """Options of what is called, as Python spells them."""
    text = f"an option {what}; VALUE is a Python literal, or else a text"
    command.add_argument("--set", metavar="NAME=VALUE", type=_setting, action="append", default=[], help=text)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _forward(text: str) -> tuple[Path, str]:
    path, _, function = text.partition(".py:")
    file = Path(path if path.endswith(".py") else f"{path}.py")
    if file.suffix != ".py" or (not function and not text.endswith(".py")):
        raise argparse.ArgumentTypeError(f"expected FILE.py:FUNCTION, got {text!r}")
    return file, function or FUNCTION


def load_forward(where: tuple[Path, str]) -> Callable[..., Any]:
    """The function, of a file that runs as a script would: modules beside it are found.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It raised, or has no such function.
    """
    file, name = where
    if not file.is_file():
        raise FileNotFoundError(f"forward: expected a Python file, got {str(file)!r}, which is not there")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"forward: expected {file} to run, got {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ValueError(f"forward: expected a function of {file}, got {name!r}{near(name, functions, 0.5)}")
    return found  # type: ignore[no-any-return]
