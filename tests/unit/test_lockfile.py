"""A dvc.lock that is not whole is named, with its line, and left as it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_ENTRIES
from ruamel.yaml import YAML

import stages.__main__
from convoy.errors import BusyError, IntegrityError
from convoy.repo import busy, lockfile
from flows import cli

WHOLE = """schema: '2.0'
stages:
  fetch@a:
    cmd: python -m stages fetch a
    deps:
    - path: stages/fetch
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 1
      nfiles: 1
    outs:
    - path: data/raw/a
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 1
      nfiles: 1
"""


@pytest.fixture
def checkout(workspace):
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(NO_ENTRIES, file)
    return workspace


def test_a_whole_one_is_read_and_none_is_none(checkout):
    assert lockfile.stages() == {}
    Path("dvc.lock").write_text(WHOLE)
    assert list(lockfile.stages()) == ["fetch@a"]
    assert cli.main(["check"]) == 0
    Path("dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    assert lockfile.stages() == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "dvc.lock is empty"),
        (WHOLE.replace("    deps:", "<<<<<<< HEAD\n    deps:"), "dvc.lock, line 5: '<<<<<<<' marks a conflict"),
        (WHOLE[: WHOLE.index("    cmd")], "dvc.lock, line 3: the entry of fetch@a is not whole"),
        (WHOLE[: WHOLE.index("data/raw/a") + 11], "dvc.lock, line 3: the entry of fetch@a is not whole"),
        (WHOLE + "  - [", "dvc.lock, line 1"),
        ("[1, 2]\n", "dvc.lock is no list of stages"),
    ],
)
def test_fault_15_a_damaged_one_is_named_and_not_overwritten(checkout, capsys, content, said):
    Path("dvc.lock").write_text(content)
    with pytest.raises(IntegrityError):
        lockfile.stages()
    assert cli.main(["check"]) == IntegrityError.status
    error = capsys.readouterr().err
    assert said in error
    assert "git checkout dvc.lock" in error
    assert Path("dvc.lock").read_text() == content


@pytest.mark.slow
def test_fault_15_what_a_kill_or_a_full_disk_left_of_it_is_mended_from_the_copy_of_the_last_stage(checkout, capsys):
    Path(".dvc/tmp").mkdir(parents=True)
    two = WHOLE + WHOLE[WHOLE.index("  fetch@a") :].replace("@a", "@b")
    unseen = []
    for cut in range(len(two)):
        Path("dvc.lock").write_text(two)
        lockfile.keep()
        Path("dvc.lock").write_text(two[:cut])
        lockfile.mend()
        if Path("dvc.lock").read_text() == two:
            assert lockfile.CUT.read_text() == two[:cut]
            assert "It is again what it was at 20" in capsys.readouterr().err
        else:
            unseen.append(two[:cut])
    assert all(text.endswith("\n") for text in unseen)
    assert len(unseen) < 20  # right behind the command or a checksum, of 36 lines


def test_fault_15_where_there_was_none_yet_there_is_none_again(checkout, capsys):
    Path(".dvc/tmp").mkdir(parents=True)
    lockfile.keep()
    Path("dvc.lock").write_text("")
    assert cli.main(["check"]) == 0
    assert "It is again not there, as at 20" in capsys.readouterr().err
    assert not Path("dvc.lock").exists()


@pytest.mark.parametrize("edited", [WHOLE + "=======\n", WHOLE + WHOLE[WHOLE.index("  fetch@a") :], "[1, 2]\n"])
def test_fault_15_what_people_wrote_is_left_to_them_though_there_is_a_copy(checkout, edited):
    Path(".dvc/tmp").mkdir(parents=True)
    Path("dvc.lock").write_text(WHOLE)
    lockfile.keep()
    Path("dvc.lock").write_text(edited)
    assert cli.main(["check"]) == IntegrityError.status
    assert Path("dvc.lock").read_text() == edited
    lockfile.keep()
    assert lockfile.KEPT.read_text() == WHOLE


def test_fault_15_what_is_being_written_is_neither_kept_nor_mended(checkout, monkeypatch):
    Path(".dvc/tmp").mkdir(parents=True)
    Path("dvc.lock").write_text(WHOLE)
    lockfile.keep()
    Path("dvc.lock").write_text(WHOLE[:100])
    monkeypatch.setattr(busy, "PATIENCE", 0.1)
    script = "import sys, zc.lockfile; l = zc.lockfile.LockFile('.dvc/tmp/lock'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writing:
        writing.stdout.readline()
        assert cli.main(["check"]) == BusyError.status
        assert Path("dvc.lock").read_text() == WHOLE[:100]
        writing.stdin.close()
    assert cli.main(["check"]) == 0
    assert Path("dvc.lock").read_text() == WHOLE


def test_a_stage_keeps_a_copy_when_it_begins(checkout):
    Path(".dvc/tmp").mkdir(parents=True)
    Path("dvc.lock").write_text(WHOLE)
    assert stages.__main__.main("ingest", "nothing") == 2  # no entry
    assert lockfile.KEPT.read_text() == WHOLE


@pytest.mark.slow
def test_the_lock_that_dvc_writes_is_whole(checkout):
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, check=True, capture_output=True)
    stage = {"cmd": "echo 1 > b", "deps": ["a"], "outs": ["b"], "params": ["ingest"]}
    Path("a").write_text("1")
    YAML().dump({"stages": {"one": stage, "two": {"cmd": "true"}}}, Path("dvc.yaml"))
    subprocess.run([sys.executable, "-m", "dvc", "repro"], check=True, capture_output=True)
    assert list(lockfile.stages()) == ["one", "two"]
