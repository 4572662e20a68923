"""Two at once in a checkout, and what dead ones have left in DVC's list of who is at work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, wait_for

from convoy.errors import BusyError
from convoy.repo import busy

STAGE = """
stages:
  slow:
    cmd: touch began && while [ ! -e go ]; do sleep 0.05; done && echo done > out
    outs: [out]
"""
DVC = (sys.executable, "-m", "dvc")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of DVC's with one stage, which runs until there is a file ``go``."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], check=True)
    Path("dvc.yaml").write_text(STAGE)
    return tmp_path


def held(**entries):
    """Writes DVC's list as if processes of these numbers wrote these files."""
    busy.HELD.parent.mkdir(parents=True, exist_ok=True)
    writes = {str(Path(name).absolute()): {"pid": number, "cmd": "dvc repro"} for name, number in entries.items()}
    busy.HELD.write_text(json.dumps({"write": writes, "read": {"/in": list(writes.values())}}))


@pytest.mark.slow
def test_fault_16_a_second_repro_is_told_who_is_at_work_and_the_first_is_unharmed(checkout):
    first = subprocess.Popen([*DVC, "repro"], stdout=subprocess.PIPE, text=True)
    wait_for(Path("began").exists)
    second = subprocess.run([*DVC, "repro"], capture_output=True, text=True, check=False)
    assert second.returncode
    assert f"(PID {first.pid})" in second.stderr
    with pytest.raises(
        BusyError, match=rf"^busy: process {first.pid} \(.*dvc repro\) runs here since \d\d:\d\d:\d\d and writes out\."
    ):
        busy.free()
    Path("go").touch()
    assert first.wait(30) == 0
    assert Path("out").read_text() == "done\n"
    busy.free()


def test_fault_16_make_repro_ends_with_status_5(workspace):
    for name in ("params.yaml", "dvc.yaml"):
        Path(name).write_text((ROOT / name).read_text())
    other = subprocess.Popen(["sleep", "60"])
    held(out=other.pid)
    try:
        command = subprocess.run(
            [sys.executable, "-m", "flows", "check"], capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        other.kill()
        other.wait()
    assert command.stderr.startswith(f"error: busy: process {other.pid} (sleep 60) runs here")
    assert command.returncode == BusyError.status


@pytest.mark.slow
def test_fault_17_who_is_dead_blocks_nobody(checkout):
    dead = subprocess.Popen(["true"])
    dead.wait()
    zombie = subprocess.Popen(["true"])
    wait_for(lambda: Path(f"/proc/{zombie.pid}/stat").read_text().split(")")[-1].split()[0] == "Z")
    elsewhere = subprocess.Popen(["sleep", "60"], cwd="/")  # has the number of one that died
    time.sleep(0.1)
    held(out=zombie.pid, other=elsewhere.pid, third=dead.pid)
    Path("go").touch()
    blocked = subprocess.run([*DVC, "repro"], capture_output=True, text=True, check=False)
    assert "is busy" in blocked.stderr  # else there is nothing that we do
    try:
        busy.free()
        assert json.loads(busy.HELD.read_text()) == {"read": {}, "write": {}}
        assert subprocess.run([*DVC, "repro"], check=False).returncode == 0
    finally:
        elsewhere.kill()
        elsewhere.wait()
        zombie.wait()


def test_fault_17_a_number_that_was_given_again_after_the_list_was_written_blocks_nobody(workspace):
    other = subprocess.Popen(["sleep", "60"])
    held(out=other.pid)
    os.utime(busy.HELD, (time.time() - 100,) * 2)
    try:
        busy.free()
    finally:
        other.kill()
        other.wait()
    assert json.loads(busy.HELD.read_text())["write"] == {}


@pytest.mark.parametrize("text", ["", '{"write": {"/a": {"pid": 1', "[]", '{"write": {"/a": 7}}', "\x00" * 9])
def test_fault_17_list_that_was_cut_off_is_started_again(workspace, text):
    held()
    busy.HELD.write_text(text)
    busy.free()
    assert json.loads(busy.HELD.read_text()) == {"read": {}, "write": {}}


def test_where_dvc_never_ran_nobody_is_at_work(workspace):
    busy.free()
    assert not busy.HELD.exists()
