"""The doctor's checks: each case is made, and the report names it with its remedy."""

import os
import re
import subprocess
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from nvml import FakeGpu, install
from servers import answering

from convoy import doctor
from convoy.errors import ConfigurationError
from flows.session import free_port


def installed(folder, name, version, *requires):
    """Writes what pip notes of a library, so that it is found first where ``folder`` is first on the path."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (place / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n")


@pytest.mark.parametrize("command", ["check", "show"])
def test_fault_28_a_mix_of_libraries_that_cannot_work_is_named_with_the_range_that_does(tmp_path, command):
    installed(tmp_path, "fastapi", "0.165.0")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    said = subprocess.run(
        [sys.executable, "-m", "flows", command], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert said.stderr == (
        "error: fastapi 0.165.0 does not work here: pyproject.toml needs fastapi<0.151. `make -B setup` installs the "
        "versions of the lock.\n"
    )
    assert (said.returncode, said.stdout) == (2, "")


def test_fault_28_what_libraries_need_of_each_other_is_looked_at_too(tmp_path, monkeypatch):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["outer[more]>=1"]\n')
    installed(tmp_path, "outer", "1.5", "inner<2", 'other ; extra == "more"', 'unasked ; extra == "less"')
    installed(tmp_path, "inner", "2.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(doctor.libraries(project)) == []
    inner, other = doctor.libraries(project, deep=True)
    assert inner.startswith("inner 2.0 does not work here: outer 1.5 needs inner<2.")
    assert other.startswith("other is not installed; outer 1.5 needs other.")


@pytest.mark.slow
def test_the_libraries_of_the_lock_go_together():
    assert list(doctor.libraries(deep=True)) == []


def test_clocks_that_are_off_are_named(workspace, monkeypatch):
    assert list(doctor.clock()) == []
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    assert list(doctor.clock()) == []
    real = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() - 1000)
    files, commit = doctor.clock()
    assert re.match(r"the file system's clock is (1,000|999) s ahead of that of this machine", files)
    assert re.match(r"the last commit is (1,000|999) s ahead of this machine's clock", commit)


class Answer(BaseHTTPRequestHandler):
    """Says 401, and that it is an hour later."""

    def do_GET(self):
        self.send_response_only(401)
        self.send_header("Date", formatdate(time.time() + 3600, usegmt=True))
        self.end_headers()


def test_a_server_with_another_clock_or_none_at_all_is_named_without_its_password(workspace, monkeypatch):
    nobody = free_port()
    with answering(Answer) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://u:canary@127.0.0.1:{port}/")
        monkeypatch.setenv("PREFECT_API_URL", f"http://u:canary@127.0.0.1:{nobody}/api")
        [clock] = doctor.clock()
        [away] = doctor.servers()
    assert clock.startswith(f"the clock of http://***@127.0.0.1:{port}/ (MLFLOW_TRACKING_URI) is 3,")
    assert away.startswith(f"http://***@127.0.0.1:{nobody}/api (PREFECT_API_URL) does not answer: [Errno 111]")


def test_a_disk_without_room_for_what_raw_data_needs_on_its_way_is_named_once(workspace, monkeypatch):
    assert list(doctor.disk()) == []
    Path("data/raw/a").mkdir(parents=True)
    with Path("data/raw/a/large").open("wb") as file:
        file.truncate(10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_500_000_000))
    monkeypatch.setattr(doctor.os, "statvfs", lambda _: SimpleNamespace(f_files=10**6, f_favail=10))
    room, entries = doctor.disk()
    assert room == (
        f"data: {workspace / 'data'} has 2.5 GB free of the 3.0 GB needed (data/raw has 1.0 GB). Make room."
    )
    assert entries.startswith(f"data: {workspace / 'data'} has room for 10 more files only")


def test_the_cache_is_looked_for_where_dvc_has_it(workspace):
    Path(".dvc").mkdir()
    (workspace / "large").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n['remote \"a\"']\n    url = /b\n")
    assert doctor._places()["DVC's cache"] == workspace / ".dvc"
    Path(".dvc/config.local").write_text("[cache]\n    type = hardlink\n    dir = ../large\n")
    assert doctor._places()["DVC's cache"] == workspace / "large"


def test_folders_that_cannot_be_written_and_what_git_says_are_named(workspace, monkeypatch):
    Path("data/ingest").mkdir()
    monkeypatch.setattr(doctor, "_places", lambda: {"checkout": Path("/proc")})
    access = os.access
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != "data/ingest" and access(path, mode))
    place, folder, git = doctor.permissions()
    assert place.startswith("checkout: files in /proc cannot be made, renamed and locked: No such file")
    assert folder == "data/ingest cannot be written in; a command of another user made it. chown -R $USER data"
    assert git.startswith("git: fatal: not a git repository")


@pytest.mark.parametrize(
    ("fails", "found"),
    [
        (None, "2 GPUs are there (NVIDIA H200), and TensorFlow without CUDA. make GPU=1 setup"),
        ("mismatch", "the NVIDIA driver does not work: RM has detected an NVML/RM version mismatch. Install"),
    ],
)
def test_a_gpu_without_cuda_or_driver_is_named(workspace, monkeypatch, fails, found):
    install(monkeypatch, FakeGpu("GPU-aaa"), FakeGpu("GPU-bbb"), fails=fails)

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "distribution", missing)
    [said] = doctor.gpu()
    assert said.startswith(found)


def test_the_command_prints_a_line_for_each_and_ends_with_2(workspace, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "gpu", lambda: iter(()))
    monkeypatch.setattr(doctor, "libraries", lambda deep: iter(["a does not work", "b does not work"]))
    monkeypatch.setattr(doctor, "permissions", lambda: iter(()))
    with pytest.raises(ConfigurationError, match="^1 of 7 will not work"):
        doctor.doctor()
    lines = capsys.readouterr().out.splitlines()
    looks = ["libraries", "clock", "disk", "permissions", "registry", "servers", "GPU"]
    assert [line.split()[0] for line in lines] == looks
    assert lines[0] == "libraries    a does not work; b does not work"
    assert lines[1] == "clock        fine"
    assert lines[5] == "servers      not looked for: neither MLFLOW_TRACKING_URI nor PREFECT_API_URL is an http address"


def test_a_gpu_that_nobody_can_look_for_is_not_fine(workspace, monkeypatch, capsys):
    for look in ("libraries", "clock", "disk", "permissions", "servers"):
        monkeypatch.setattr(doctor, look, lambda deep=True: iter(()))
    install(monkeypatch, fails="absent")
    doctor.doctor()
    assert capsys.readouterr().out.splitlines()[6] == "GPU          not looked for: there is no NVIDIA driver"
    with answering(Answer) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}/")
        install(monkeypatch)
        doctor.doctor()
    assert capsys.readouterr().out.splitlines()[5:] == ["servers      fine", "GPU          fine"]
