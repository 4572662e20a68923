"""The corpus of ``hostile.py``: each case ends as its fault should, and leaves everything else as it was."""

import csv
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hostile import CANARY, CASES, IMAGES, good
from ruamel.yaml import YAML

from convoy.data.shards import Shards
from stages.__main__ import main

SECONDS = 10  # of a bomb
BYTES = 512 * 10**6  # of memory, above what the process has when all is imported
MESSAGE_LINES = 3

# Runs the cases whose workspaces it is given, each in a fork: what takes long is to import, and to fork is not.
BOMBS = """
import json, os, resource, signal, sys, time
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from stages.__main__ import main
for module in ("finders.images", "finders.text", "report.report"):
    import_module(f"stages.ingest.{module}")
seconds, limit, *workspaces = sys.argv[1:]
for workspace in workspaces:
    child = os.fork()
    if not child:
        os.chdir(workspace)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * int(limit),) * 2)  # threads take address space, too
        signal.alarm(int(seconds))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with open("../stdout", "w") as out, open("../stderr", "w") as err, redirect_stdout(out), redirect_stderr(err):
            status = main("ingest", "x")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        facts = {"status": status, "bytes": grown, "seconds": time.monotonic() - start}
        Path("../facts.json").write_text(json.dumps(facts))
        os._exit(0)
    os.waitpid(child, 0)
"""


def prepared(root, case, before):
    """Makes a workspace in ``root`` with the raw data of a case and the output of an earlier run; returns it."""
    workspace = root / "workspace"
    for folder, _, names in os.walk(before):
        target = workspace / Path(folder).relative_to(before)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            (target / name).write_bytes(Path(folder, name).read_bytes())
    write_params(workspace, case.params)
    case.build(workspace / "data/raw/x")
    return workspace


def write_params(workspace, entry):
    sections = {name: {} for name in ("fetch", "augment", "train", "register")} | {"ingest": {"x": entry}}
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(sections, file)


def state(folder, but=()):
    """Returns path -> mode, time of change and content of all in ``folder`` that does not begin like one of ``but``."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in [*folders, *names]):
            relative = path.relative_to(folder).as_posix()
            if relative.startswith(but):
                continue
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                found[relative] = facts.st_mode, facts.st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()
            elif stat.S_ISLNK(facts.st_mode):
                found[relative] = facts.st_mode, facts.st_mtime_ns, path.readlink()
            else:
                found[relative] = facts.st_mode  # a folder's time is that of what comes and goes in it
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A workspace in which ingest has run well."""
    workspace = tmp_path_factory.mktemp("before")
    good(workspace / "data/raw/x")
    write_params(workspace, IMAGES)
    here = Path.cwd()
    os.chdir(workspace)
    try:
        with redirect_stdout(StringIO()):
            assert main("ingest", "x") == 0
    finally:
        os.chdir(here)
    for path in sorted((workspace / "data/raw").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return workspace


def check(case, root, earlier, status, out, err):
    """Checks everything that a case leaves behind."""
    assert (status, "Traceback" in out + err) == (case.status, False), out + err
    assert err.count("\n") <= MESSAGE_LINES
    assert not re.search(r"[^\n\t -~\xa0-\U0010ffff]", out + err)  # sequences that steer a terminal
    allowed = ("workspace/data/ingest", "workspace/data/journal.jsonl", "stdout", "stderr", "facts.json")
    assert state(root, allowed) == {path: it for path, it in earlier.items() if not path.startswith(allowed)}
    assert not (root / CANARY).exists()
    output = root / "workspace/data/ingest"
    assert {path.name for path in output.iterdir()} == {".cache", "x"}
    said = err
    if case.status:
        inside = "workspace/data/ingest/x"
        assert {p: it for p, it in state(root).items() if p.startswith(inside)} == {
            path: it for path, it in earlier.items() if path.startswith(inside)
        }
    else:
        assert err == ""
        text = (output / "x/quarantine.csv").read_bytes().decode()
        header, *rows = csv.reader(StringIO(text, newline=""))
        assert header == ["path", "reason"]
        assert [len(row) for row in rows] == [2] * case.bad
        assert f"left out {case.bad} (quarantine.csv)" in out
        said = out + "\n".join(" ".join(row) for row in rows)
        page = (output / "x/report.html").read_text()
        assert "<script>alert" not in page
    for word in case.words:
        assert word in said


def check_pixels(case, root):
    """Checks that a picture of one colour has it in the shards."""
    output = root / "workspace/data/ingest/x"
    manifest = pd.read_parquet(output / "manifest.parquet")
    [row] = manifest[manifest["path"].str.startswith("a/bad")].to_dict("records")
    shards = Shards(output / row["split"])
    place = [bytes(content).hex() for content in shards.column("content")].index(row["sha256"])
    np.testing.assert_allclose(shards[place]["image"].astype(int), case.shows, atol=1)


@pytest.mark.parametrize("case", [case for case in CASES if not case.bomb], ids=lambda case: case.name)
def test_hostile_raw_data_is_refused_left_out_or_read_right(case, before, tmp_path, monkeypatch, capsys):
    workspace = prepared(tmp_path, case, before)
    monkeypatch.chdir(workspace)
    earlier = state(tmp_path)
    capsys.readouterr()
    status = main("ingest", "x")
    captured = capsys.readouterr()
    check(case, tmp_path, earlier, status, captured.out, captured.err)
    if case.shows is not None:
        check_pixels(case, tmp_path)


@pytest.fixture(scope="module")
def exploded(before, tmp_path_factory):
    """Case -> its folder, and what was in it before; all bombs are run, some at a time."""
    roots = {case.name: tmp_path_factory.mktemp("bomb") for case in CASES if case.bomb}
    workspaces = [str(prepared(roots[case.name], case, before)) for case in CASES if case.bomb]
    earlier = {name: state(root) for name, root in roots.items()}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BOMBS, str(SECONDS), str(BYTES), *workspaces[half::2]],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for half in (0, 1)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    return {name: (root, earlier[name]) for name, root in roots.items()}


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", [case for case in CASES if case.bomb], ids=lambda case: case.name)
def test_fault_30_a_bomb_stops_within_10_seconds_and_512_mb(case, exploded):
    root, earlier = exploded[case.name]
    out, err = (root / "stdout").read_text(), (root / "stderr").read_text()
    assert (root / "facts.json").exists(), f"ended by a signal or an exception. {out}{err}"
    facts = json.loads((root / "facts.json").read_text())
    check(case, root, earlier, facts["status"], out, err)
    assert facts["bytes"] < BYTES
    assert facts["seconds"] < SECONDS
    if case.shows is not None:
        check_pixels(case, root)


def test_the_corpus_has_cases_of_every_fault_of_raw_data():
    rows = Counter(case.row for case in CASES)
    assert rows.keys() >= {29, 30, 31, 32, 33, 34, 36, 37}  # 35 is in test_download.py
    assert rows.total() >= 60
    assert len({case.name for case in CASES}) == rows.total()


def test_more_bad_files_than_the_message_names_are_all_listed(before, tmp_path, monkeypatch):
    [case] = [case for case in CASES if case.name == "share of bad files above max bad"]
    workspace = prepared(tmp_path, case, before)
    monkeypatch.chdir(workspace)
    assert main("ingest", "x") == 3
    with (workspace / "data/ingest/.cache/x/refused.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"a/{number}.png" for number in range(6)]
    assert all("cut off" in row["reason"] for row in rows)
