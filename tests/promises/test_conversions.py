"""A conversion that is stopped, however often and however hard, ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("recipe", ["nearest", "sparse", "mixed", "gptq", "sparsegpt"])
def test_a_conversion_that_is_stopped_ends_with_the_same_bytes(
    recipe: str, long: bool, count: Callable[[str, object], None], tmp_path: Path
) -> None:
    stops = 200 if long else 6
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, HERE / "stopping.py", tmp_path, str(stops), recipe]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    count(f"stopped conversions, {recipe}", result)
    assert result["broken"] == []
    assert sum(result["stops"].values()) == stops


FULL_DISK = """
import ctypes, hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import stopping
root, shim, every = Path(sys.argv[2]), ctypes.CDLL(sys.argv[3]), int(sys.argv[4])
stopping.plan.CHUNK_BYTES = 64 * 128 * 4
stopping.model(root / "source")
shim.faults_arm(-1, 0, 0, 0)
stopping.convert(root, "nearest")
calls = shim.faults_disarm()
expected = stopping.digest(root / "out")
met = 0
for nth in range(0, calls, every):
    stopping.shutil.rmtree(root / "out")
    shim.faults_arm(nth, 1, int(sys.argv[5]), 1)
    try:
        stopping.convert(root, "nearest")
    except OSError as error:
        met += 1
        assert error.errno == int(sys.argv[5]), error
    shim.faults_disarm()
    stopping.convert(root, "nearest", resume=True, overwrite=True)
    assert stopping.digest(root / "out") == expected, nth
print(met)
"""


def test_a_disk_that_was_full_at_any_moment_costs_nothing_but_time(
    faults: Path, long: bool, count: Callable[[str, object], None], tmp_path: Path
) -> None:
    environment = os.environ | {"LD_PRELOAD": str(faults), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [str(HERE), str(tmp_path), str(faults), "1" if long else "37", str(errno.ENOSPC)]
    command = [sys.executable, "-c", FULL_DISK, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    count("full disks amid a conversion", int(done.stdout))
    assert int(done.stdout) > 3


FORKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import stopping
from pumice.checkpoint.publication import Publication
root = stopping.Path(sys.argv[2])
left, right = os.pipe()
children = []

def fork():
    children.append(os.fork())
    if not children[-1]:
        os.close(right)
        os.read(left, 1)  # until the parent is done
        os._exit(0)

publication = Publication(root)
with publication.exclusive():
    fork()
with publication.exclusive():
    print("published")
publication.discard()

def stop(*_):
    fork()
    raise KeyboardInterrupt

stopping.model(root / "source")
try:
    stopping.convert(root, "nearest", progress=stop)
except KeyboardInterrupt:
    stopping.convert(root, "nearest", resume=True)
print("converted", flush=True)
os.close(right)
"""


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    """Processes of an executor are forked while a thread of ours writes, and they outlive a kill of their parent."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(HERE), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:
            said, _ = running.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            running.kill()  # its end of the pipe goes, and its children with it
            raise
    assert said.split() == ["published", "converted"]
