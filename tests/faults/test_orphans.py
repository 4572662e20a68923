"""A stage ends when the dvc that runs it is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT
from processes import gone

# What a stage is: it watches, starts something, and works on.
STAGE = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from convoy.machine import orphans
orphans.watch()
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
shipper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(os.getpid(), inner.pid, shipper.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["sh", "a shell that stays"])
def killed(request, tmp_path):
    """Numbers of a stage, of what it started, and of who ships, whose dvc was killed with SIGKILL."""
    (tmp_path / "stage.py").write_text(STAGE.format(root=str(ROOT)))
    command = f"{sys.executable} {tmp_path / 'stage.py'}" + ("; true" if request.param != "sh" else "")
    dvc = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run(['/bin/sh', '-c', {command!r}])"],
        env=os.environ | {"DVC_STAGE": "train@a"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    numbers = [int(word) for word in dvc.stdout.readline().split()]
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    yield numbers
    for number in numbers:
        if psutil.pid_exists(number):
            os.kill(number, signal.SIGKILL)


def test_fault_02_the_stage_of_a_killed_dvc_ends_within_a_second(killed):
    stage, inner, shipper = killed
    assert gone([stage, inner], seconds=1)
    assert psutil.pid_exists(shipper)


def test_without_dvc_nothing_is_watched(monkeypatch):
    from convoy.machine import orphans

    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(orphans.threading, "Thread", None)
    orphans.watch()
