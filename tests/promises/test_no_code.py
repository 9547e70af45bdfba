"""Loading never runs code: Python's own audit events say so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"

# Run in a process of its own, as a hook can't be removed.
PROGRAM = """
import random, sys
from mutations import mutated, seeds
from fuzz import target

rng = random.Random(5)
corpus = seeds()
blobs = [rng.choice(corpus) if i % 4 == 0 else mutated(rng, corpus) for i in range(int(sys.argv[1]))]
target(corpus[0])
FORBIDDEN = {
    "exec", "compile", "import", "marshal.loads", "marshal.load", "pickle.find_class", "code.__new__", "ctypes.dlopen",
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
    "urllib.Request", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.putenv", "shutil.rmtree", "open",
}
seen = []
watching = True

def hook(event, arguments):
    if watching and (event in FORBIDDEN or event.startswith(("socket.", "ctypes.", "webbrowser."))):
        seen.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
if "--prove" in sys.argv:
    eval("1 + 1")
ends = {}
for blob in blobs:
    end = target(blob)
    ends[end] = ends.get(end, 0) + 1
watching = False
print(len(blobs), ends)
sys.exit("\\n".join(map(str, seen[:20])) or 0)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FUZZ), *filter(None, sys.path)])}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_ten_thousand_loads_run_no_code(count: Callable[[str, object], None]) -> None:
    done = run("10000")
    assert done.returncode == 0, done.stderr
    count("audited loads", done.stdout.strip())


def test_the_hook_would_see_it() -> None:
    done = run("10", "--prove")
    assert done.returncode == 1
    assert "compile" in done.stderr and "exec" in done.stderr


@pytest.mark.parametrize("source", ["pickle", "zip", "numpy", "npz"])
def test_files_that_could_hold_code_are_refused_by_their_content(source: str, tmp_path: Path) -> None:
    import io
    import pickle
    import zipfile

    import numpy as np

    import pumice as pm

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    file = io.BytesIO()
    if source == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    elif source == "npz":
        np.savez(file, w=np.ones(3), evil=np.array([Evil()], object))
    elif source == "numpy":
        np.save(file, np.array([Evil()], object), allow_pickle=True)
    else:
        pickle.dump(Evil(), file)
    path = tmp_path / "model.safetensors"
    path.write_bytes(file.getvalue())
    for attempt in (path, tmp_path, file.getvalue()):
        with pytest.raises(pm.FormatError):
            pm.load(attempt)
    assert not (tmp_path / "ran").exists()
