"""Nothing outlives its flow: each way to die, and what is left after it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from conftest import ROOT
from filelock import FileLock, Timeout
from processes import gone

from convoy.machine import guard

# Like a stage under dvc: a process with one of its own, which writes down who it is and works on.
TREE = """
import os, subprocess, sys, time
inner = "import os, sys, time; open(sys.argv[1] + '/inner', 'w').write(str(os.getpid())); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", inner, sys.argv[1]])
open(sys.argv[1] + "/outer", "w").write(str(os.getpid()))
child.wait()
"""
PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from convoy.machine import guard
started = guard.start([sys.executable, "-c", {tree!r}, {folder!r}])
open({folder!r} + "/guard", "w").write(str(started.pid))
time.sleep(60)
"""


def number(path, seconds=20):
    """Waits for the process that writes its number to ``path``."""
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        with suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def test_output_and_status_come_through():
    started = guard.start(
        [sys.executable, "-c", "import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)"]
    )
    assert sorted(started.stdout) == ["one\n", "two\n"]
    assert started.wait() == 7


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_parent_that_dies_takes_everything_along(tmp_path, how):
    code = PARENT.format(root=str(ROOT), tree=TREE, folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    pids = [number(tmp_path / name) for name in ("guard", "outer", "inner")]
    parent.send_signal(how)
    parent.wait(10)
    assert gone(pids)


def test_what_the_command_leaves_behind_is_ended_with_it(tmp_path):
    started = guard.start([sys.executable, "-c", TREE, str(tmp_path)])
    outer, inner = number(tmp_path / "outer"), number(tmp_path / "inner")
    os.kill(outer, signal.SIGKILL)
    assert started.wait(10) == 128 + signal.SIGKILL
    assert gone([inner], 1)


@pytest.mark.slow
def test_a_command_that_heeds_no_signal_is_killed(tmp_path):
    code = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); "
    code += "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    started = guard.start([sys.executable, "-c", code, str(tmp_path / "it")])
    pid = number(tmp_path / "it")
    guard.end(started)
    assert gone([pid, started.pid])


def test_a_lock_that_it_holds_is_free_when_the_command_is_gone_and_not_before(tmp_path):
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    started = guard.start([sys.executable, "-c", TREE, str(tmp_path)], holding=[lock._context.lock_file_fd])
    os.close(lock._context.lock_file_fd)  # ours; the guard has its own
    inner = number(tmp_path / "inner")
    with pytest.raises(Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0.3)
    os.kill(inner, signal.SIGKILL)
    begin = time.monotonic()
    FileLock(tmp_path / "lock").acquire(timeout=5)
    assert time.monotonic() - begin < 2
    assert started.wait(5) == 0
