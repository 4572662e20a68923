"""A pipeline on a Dask scheduler and two workers in clones of their own: the same results, also if one dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import psutil
import pytest
from conftest import NO_ENTRIES, ROOT, wait_for
from prefect import get_client
from ruamel.yaml import YAML

from convoy import journal
from convoy.errors import ConfigurationError, ServiceError
from convoy.repo import graph
from flows import pipeline as module
from flows.pipeline import StageFailedError, pipeline
from flows.run import cluster, orders
from flows.session import free_port

# A stage that notes where it begins and ends; what it makes follows from what it reads.
STAGE = """
import json, os, pathlib, sys, time
name, seconds, output, *inputs = sys.argv[1:]
def note(what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{name} {what} {time.time()} {os.getpid()} {os.getcwd()} {os.environ['MLFLOW_TRACKING_URI']}\\n")
note("begins")
print(f"{name} works", flush=True)
time.sleep(float(seconds))
text = " ".join(pathlib.Path(file).read_text() for file in inputs)
if "fails" in name:
    sys.exit(f"error: {name} says no")
pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
result = json.dumps({"score": len(text)}) if output.endswith("json") else f"{name} of ({text})"
pathlib.Path(output).write_text(result)
with open("data/journal.jsonl", "a") as file:
    entry = {"stage": name, "started": "2026-01-01T00:00:00+00:00", "seconds": float(seconds), "status": 0}
    file.write(json.dumps(entry) + "\\n")
note("ends")
"""
GRAPH = """
stages:
  fetch:
    cmd: python stage.py fetch 0 data/raw
    deps: [stage.py]
    outs: [data/raw]
  ingest:
    cmd: python stage.py ingest 0 data/ingest/all data/raw data/added
    deps: [stage.py, data/raw, data/added]
    outs: [data/ingest]
  train:
    foreach: ${models}
    do:
      cmd: python stage.py train@${key} ${item.seconds} data/train/${key}/model data/ingest/all
      deps: [stage.py, data/ingest]
      outs: ["data/train/${key}/model"]
  evaluate:
    foreach: ${models}
    do:
      cmd: python stage.py evaluate@${key} 0 data/evaluate/${key}/metrics.json data/train/${key}/model
      deps: [stage.py, "data/train/${key}/model"]
      metrics: ["data/evaluate/${key}/metrics.json"]
  register:
    cmd: python stage.py register 0 data/register data/evaluate/a/metrics.json
    deps: [stage.py, data/evaluate]
    outs:
      - data/register: {cache: false}
"""


@pytest.fixture
def clones(tmp_path, monkeypatch):
    """Clones "coordinator", "one", "two" and "alone" of a small project with a remote; works in the first."""
    monkeypatch.setattr(module, "RETRY_SECONDS", [0.1])
    monkeypatch.setattr(module.runs, "end_abandoned", lambda: None)
    monkeypatch.setattr(module.check, "check", lambda: None)
    monkeypatch.setattr(module.params, "load", lambda: NO_ENTRIES)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    origin = tmp_path / "origin"
    (origin / "data").mkdir(parents=True)
    (origin / "stage.py").write_text(STAGE)
    (origin / "dvc.yaml").write_text(GRAPH)
    (origin / "data/added").write_text("what a user added")
    write(origin, a=0, b=0)
    for command in (
        "git init -q", "dvc init -q", f"dvc remote add -q -d store {tmp_path / 'store'}", "dvc add -q data/added",
        "dvc push -q", "git add -A", "git commit -q -m all",
    ):  # fmt: skip
        run(command, origin)
    for name in ("coordinator", "one", "two", "alone"):
        run(f"git clone -q {origin} {tmp_path / name}", tmp_path)
        (tmp_path / name / "data").mkdir(exist_ok=True)
    run("dvc pull -q data/added.dvc", tmp_path / "coordinator")
    run("dvc pull -q data/added.dvc", tmp_path / "alone")
    monkeypatch.chdir(tmp_path / "coordinator")
    return tmp_path


@pytest.fixture
def start(clones):
    """A function that starts a process in a clone; all are ended."""
    started = []

    def start(name, *command):
        temporary = clones / f"tmp-{name}"  # as if each were a machine of its own
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        environment |= {"PYTHONPATH": str(ROOT)} if command[0] == "flows" else {}
        with (clones / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=clones / name, env=environment, stdout=log, stderr=log
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(20)


@pytest.fixture
def scheduler(start):
    """Address of a Dask scheduler."""
    port = free_port()
    words = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
    start("origin", "dask", *words)
    return f"tcp://127.0.0.1:{port}"


@pytest.fixture
def workers(clones, start, scheduler):
    """Two workers at work, by the name of their clone."""
    names = ("one", "two")
    processes = {name: start(name, "flows", "worker", scheduler) for name in names}
    for name in names:
        wait_for(lambda name=name: f"works for {scheduler}" in (clones / f"{name}.log").read_text(), 60)
    return processes


def run(command, folder):
    words = command.split()
    if words[0] == "dvc":
        words = [sys.executable, "-m", *words]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def write(folder, **seconds):
    models = {name: {"seconds": value} for name, value in seconds.items()}
    (folder / "params.yaml").write_text(json.dumps({"models": models}))


def events(clones):
    """Returns (stage, what, clone) as the stages noted them."""
    notes = clones / "notes"
    rows = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
    return [(name, what, Path(folder).name) for name, what, _, _, folder, _ in rows]


def lock(folder):
    return YAML(typ="safe").load(folder / "dvc.lock")


def running(clones, prefix=""):
    """Returns the stages that are alive and whose names begin with ``prefix``, by clone."""
    found = {}
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words, folder = process.info["cmdline"] or (), process.info["cwd"] or ""
        stage = words[words.index("stage.py") + 1] if "stage.py" in words[:-1] else None
        alive = process.info["status"] != psutil.STATUS_ZOMBIE and folder.startswith(str(clones))
        if alive and stage is not None and stage.startswith(prefix):
            found.setdefault(Path(folder).name, []).append(process)
    return found


def test_it_leaves_what_dvc_repro_alone_leaves_and_both_workers_work(prefect, clones, workers, scheduler, caplog):
    write(Path(), a=3, b=3)
    write(clones / "alone", a=0, b=0)
    shutil.copy("params.yaml", clones / "alone/params.yaml")
    assert pipeline(cluster=scheduler, return_state=True).is_completed()
    placed = {name: clone for name, what, clone in events(clones) if what == "ends"}
    assert placed["fetch"] == placed["register"] == "coordinator"
    assert {placed["train@a"], placed["train@b"]} == {"one", "two"}
    assert "coordinator" not in {placed[name] for name in ("ingest", "evaluate@a", "evaluate@b")}
    assert "train@a works" in [record.getMessage() for record in caplog.records]
    run("dvc repro", clones / "alone")
    assert lock(Path()) == lock(clones / "alone")
    assert run("dvc metrics show --json", ".") == run("dvc metrics show --json", clones / "alone")
    assert "up to date" in run("dvc status", ".")
    assert {entry["stage"] for entry in journal.entries()} == set(placed)

    (clones / "notes").unlink()  # again: nothing runs, not even where the outputs are gone
    shutil.rmtree("data/train")
    states = task_states(pipeline(cluster=scheduler, return_state=True))
    assert states == {name: "Cached" if name.startswith("train") else "UpToDate" for name in placed}
    assert events(clones) == []
    write(Path(), a=0, b=3)
    assert pipeline(cluster=scheduler, return_state=True).is_completed()
    assert {name for name, *_ in events(clones)} == {"train@a"}  # which comes out as it was


def task_states(state):
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_task_runs() if run.flow_run_id == state.state_details.flow_run_id]
    return {run.name: run.state.name for run in runs}


def test_another_worker_takes_over_from_one_that_is_killed(prefect, clones, workers, scheduler):
    write(Path(), a=4, b=4)
    killed = []

    def kill():
        trainings = []  # kept as they are seen: a short stage may be gone when it is asked for again
        wait_for(lambda: trainings.extend(running(clones, "train@").get("one", ())) or trainings, 60)
        [stage, *_] = trainings
        workers["one"].kill()
        began = time.monotonic()
        wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, 5)
        killed.append(time.monotonic() - began)

    thread = module.threading.Thread(target=kill)
    thread.start()
    assert pipeline(cluster=scheduler, return_state=True).is_completed()
    thread.join()
    assert killed[0] < 5
    ended = [(name, clone) for name, what, clone in events(clones) if what == "ends" and name.startswith("train")]
    assert dict(ended) == {"train@a": "two", "train@b": "two"}
    assert "up to date" in run("dvc status", ".")


FLOW = f"""
import sys
from flows import cli
from stages import check
from convoy import params
from convoy.tracking import runs
check.check = runs.end_abandoned = lambda: None
params.load = lambda: {NO_ENTRIES!r}
sys.exit(cli.main(["run", "--cluster", sys.argv[1]]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_what_the_workers_do_ends_with_the_coordinator(clones, workers, scheduler, start, how, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(clones / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (clones / "tmp-coordinator").mkdir()
    (clones / "tmp-coordinator/coordinate.py").write_text(FLOW)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write(Path(), a=60, b=60)
    process = subprocess.Popen([sys.executable, clones / "tmp-coordinator/coordinate.py", scheduler])
    wait_for(lambda: {"one", "two"} <= running(clones).keys(), 90)
    process.send_signal(how)
    began = time.monotonic()
    wait_for(lambda: not running(clones), 5)
    assert time.monotonic() - began < 5
    process.wait(60)


def test_a_stage_that_fails_says_so_with_its_status(prefect, clones, workers, scheduler):
    write(Path(), a=0, fails=0)
    state = pipeline(cluster=scheduler, return_state=True)
    with pytest.raises(StageFailedError, match="train@fails: train@fails says no"):
        state.result()
    assert "evaluate@a" in {name for name, what, _ in events(clones) if what == "ends"}


def test_a_worker_with_another_code_is_refused_before_anything_runs(prefect, clones, start, scheduler):
    (clones / "one/stage.py").write_text(STAGE + "\n")
    start("one", "flows", "worker", scheduler)
    wait_for(lambda: "works for" in (clones / "one.log").read_text(), 60)
    with pytest.raises(ConfigurationError, match=r"the worker .+/one has another code: stage\.py\. Bring both"):
        pipeline(cluster=scheduler)
    assert events(clones) == []


def test_changes_in_the_clone_of_a_worker_are_not_lost(prefect, clones, start, scheduler):
    write(Path(), a=0.5)
    write(clones / "one", a=7)
    start("one", "flows", "worker", scheduler)
    wait_for(lambda: "works for" in (clones / "one.log").read_text(), 60)
    with pytest.raises(StageFailedError, match=r"ingest: .+/one: params\.yaml has changes of its own") as error:
        pipeline(["train"], cluster=scheduler)
    assert error.value.status == 2
    run("git checkout params.yaml", clones / "one")
    assert pipeline(["train"], cluster=scheduler, return_state=True).is_completed()
    write(Path(), a=0.1)  # and what a coordinator wrote there may be overwritten
    assert pipeline(["train"], cluster=scheduler, return_state=True).is_completed()


def test_pipeline_first_reports_what_is_missing(prefect, clones, scheduler, monkeypatch):
    with pytest.raises(ServiceError, match=f"the scheduler {scheduler} has no worker. Start one in another clone"):
        pipeline(cluster=scheduler)
    with pytest.raises(ConfigurationError, match="slots = 2 beside a cluster"):
        pipeline(cluster=scheduler, slots=2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI is not set"):
        pipeline(cluster=scheduler)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run("dvc remote remove store", ".")
    with pytest.raises(ConfigurationError, match="a cluster needs a remote"):
        pipeline(cluster=scheduler)


def test_a_scheduler_that_dies_in_the_middle_is_an_outage_and_nothing_goes_on(
    prefect, clones, workers, scheduler, monkeypatch
):
    write(Path(), a=60)
    port = scheduler.rpartition(":")[2]

    def kill():
        wait_for(lambda: running(clones), 60)
        [process] = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and port in p.info["cmdline"]]
        process.kill()

    thread = module.threading.Thread(target=kill)
    thread.start()
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        state = pipeline(cluster=scheduler, return_state=True)
    thread.join()
    with pytest.raises(StageFailedError) as error:
        state.result()
    assert error.value.status == ServiceError.status  # and was tried again
    wait_for(lambda: not running(clones), 5)


def test_a_worker_waits_for_a_scheduler_that_is_gone(clones, start, scheduler):
    port = scheduler.rpartition(":")[2]
    log = clones / "one.log"
    worker = start("one", "flows", "worker", scheduler)
    wait_for(lambda: "works for" in log.read_text(), 60)
    [first] = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and port in p.info["cmdline"]]
    first.kill()
    wait_for(lambda: "is gone; waiting for it" in log.read_text(), 30)
    start("origin", "dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show")
    wait_for(lambda: log.read_text().count("works for") == 2, 60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    worker = start("two", "flows", "worker", f"tcp://127.0.0.1:{free_port()}")  # which ends also while it waits
    wait_for(lambda: "Waiting to connect" in (clones / "two.log").read_text(), 60)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 0


def test_gpus_are_resources_where_a_worker_has_them(clones):
    place = cluster.Cluster("tcp://127.0.0.1:9", graph.read())
    known = {"a": {"CPU": 1.0, orders.STAGES: 2.0}, "b": {"GPU": 2.0, orders.STAGES: 8.0}}
    place._find_workers = lambda: known
    assert (place._device, place.trainings) == ("GPU", 2)
