"""The flow over a small graph of dvc.yaml: what runs, in which order, where, and what is left when it is killed."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import httpx
import psutil
import pytest
from browser import browser, text_once
from conftest import NO_ENTRIES, ROOT, wait_for
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelling
from ruamel.yaml import YAML

from convoy.errors import BusyError, ServiceError
from flows import cli, session
from flows import pipeline as module
from flows.pipeline import StageFailedError, pipeline
from flows.run import command, devices
from flows.run.exclusive import CHECKOUT
from flows.session import free_port

# A stage that notes when it began and ended and how it went, as ours do in the journal.
STAGE = """
import json, os, signal, sys, time
name, seconds, status = sys.argv[1], float(sys.argv[2]), sys.argv[3]
tries = len(open("log").read().split(name + " begins")) if os.path.exists("log") else 1
def note(what):
    with open("log", "a") as file:
        file.write(f"{name} {what} {time.time()} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
note("begins")
print(f"{name} works", flush=True)
time.sleep(seconds)
if status == "killed" and tries == 1:
    os.kill(os.getpid(), signal.SIGKILL)
status = int(status) if status.isdigit() else 0
with open("data/journal.jsonl", "a") as file:
    entry = {"stage": name, "started": "2026-01-01T00:00:00+00:00", "seconds": seconds, "status": status}
    file.write(json.dumps(entry) + "\\n")
if status:
    sys.exit(f"error: {name} says {status}")
open(name.replace("@", "-"), "w").write(name)
note("ends")
"""
GRAPH = """
stages:
  first:
    cmd: python stage.py first ${first.seconds} ${first.status}
    deps: [stage.py]
    outs: [first]
  train:
    foreach: ${models}
    do:
      cmd: python stage.py train@${key} ${item.seconds} ${item.status}
      deps: [first]
      outs: ["train-${key}"]
  evaluate:
    foreach: ${models}
    do:
      cmd: python stage.py evaluate@${key} 0 0
      deps: ["train-${key}"]
      outs: ["evaluate-${key}"]
"""


@pytest.fixture
def toy(workspace, monkeypatch):
    """A checkout whose stages sleep, and a function that sets what each does: (seconds, status)."""
    monkeypatch.setattr(module, "RETRY_SECONDS", [0.1, 0.1])
    monkeypatch.setattr(module.runs, "end_abandoned", lambda: None)
    monkeypatch.setattr(module.devices.tempfile, "gettempdir", lambda: str(workspace))
    monkeypatch.setattr(module.check, "check", lambda: None)
    (workspace / "stage.py").write_text(STAGE)
    (workspace / "dvc.yaml").write_text(GRAPH)
    dvc("init", "--no-scm", "-q")

    def write(first=(0, 0), **models):
        entries = {name: {"seconds": seconds, "status": status} for name, (seconds, status) in models.items()}
        both = {"first": {"seconds": first[0], "status": first[1]}, "models": entries}
        (workspace / "params.yaml").write_text(json.dumps(both))

    monkeypatch.setattr(module.params, "load", lambda: NO_ENTRIES)
    return write


def dvc(*words):
    return subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True, text=True).stdout


def events():
    """Returns (stage, what, when, device) as the stages noted them."""
    rows = [line.split() for line in Path("log").read_text().splitlines()] if Path("log").exists() else []
    return [(name, what, float(when), device) for name, what, when, _, device in rows]


def ran():
    return {name for name, what, *_ in events() if what == "begins"}


def task_states(state):
    """Returns {stage: name of its state in Prefect}."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        )
    return {run.name: run.state.name for run in runs}


def test_stages_run_in_order_and_dvc_lock_is_that_of_dvc_repro(prefect, toy):
    toy(a=(0.2, 0), b=(0.1, 0))
    state = pipeline(slots=2, return_state=True)
    assert state.is_completed()
    at = {(name, what): when for name, what, when, _ in events()}
    for model in "ab":
        assert at["first", "ends"] < at[f"train@{model}", "begins"]
        assert at[f"train@{model}", "ends"] < at[f"evaluate@{model}", "begins"]
    assert set(task_states(state).values()) == {"Ran"}
    ours = YAML(typ="safe").load(Path("dvc.lock"))
    for path in (".dvc/cache", ".dvc/tmp", "log"):
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    Path("dvc.lock").unlink()
    dvc("repro", "--force")
    assert YAML(typ="safe").load(Path("dvc.lock")) == ours


def test_what_is_up_to_date_cached_and_forced_is_told_apart(prefect, toy):
    toy(a=(0, 0))
    pipeline()
    Path("log").unlink()
    assert set(task_states(pipeline(return_state=True)).values()) == {"UpToDate"}
    Path("dvc.lock").unlink()
    Path("train-a").unlink()
    assert task_states(pipeline(return_state=True))["train@a"] == "Cached"
    assert ran() == set()
    assert set(task_states(pipeline(force=True, return_state=True)).values()) == {"Ran"}
    assert ran() == {"first", "train@a", "evaluate@a"}


def test_a_target_runs_with_what_it_needs_and_nothing_else(prefect, toy):
    toy(a=(0, 0), b=(0, 0))
    pipeline(["train@b"])
    assert ran() == {"first", "train@b"}


def test_a_failed_model_stops_what_needs_it_and_nothing_else_and_its_status_comes_through(prefect, toy):
    toy(a=(0, 7), b=(0, 0))
    state = pipeline(return_state=True)
    assert ran() == {"first", "train@a", "train@b", "evaluate@b"}
    assert [name for name, what, *_ in events() if what == "begins"].count("train@a") == 1  # 7 will not pass
    with pytest.raises(StageFailedError, match="train@a: train@a says 7") as error:
        state.result()
    assert error.value.status == 7
    assert task_states(state)["evaluate@a"] == "NotReady"


@pytest.mark.parametrize(("status", "tries"), [(2, 1), (3, 1), (6, 3), (5, 3)])
def test_only_what_may_pass_is_tried_again(prefect, toy, status, tries):
    toy(first=(0, status))
    state = pipeline(return_state=True)
    assert len([1 for _, what, *_ in events() if what == "begins"]) == tries
    with pytest.raises(StageFailedError) as error:
        state.result()
    assert error.value.status == status


def test_a_killed_stage_is_tried_again(prefect, toy):
    toy(a=(0, "killed"))
    assert pipeline(return_state=True).is_completed()
    assert [what for name, what, *_ in events() if name == "train@a"] == ["begins", "begins", "ends"]


def test_trainings_have_a_device_each_and_others_none(prefect, toy, monkeypatch):
    monkeypatch.setattr(devices, "_find_gpus", lambda: [devices.Slot(f"gpu:{n}", f"gpu-{n}") for n in (0, 1)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    toy(a=(0.4, 0), b=(0.4, 0), c=(0.4, 0))
    pipeline()
    assert {device for name, _, _, device in events() if not name.startswith("train")} == {"None"}
    busy = {}
    for name, what, _, device in sorted(events(), key=lambda event: event[2]):
        if name.startswith("train"):
            assert device in ("0", "1")
            assert busy.pop(device, None) == (None if what == "begins" else name)
            if what == "begins":
                busy[device] = name


def test_what_a_stage_prints_is_in_prefects_log_line_by_line(prefect, toy, caplog):
    toy(a=(0, 0))
    pipeline()
    lines = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert "train@a works" in lines
    assert "Running stage 'train@a':" in lines


def test_fault_16_a_second_pipeline_in_the_checkout_is_told_who_runs(prefect, toy):
    toy(a=(3, 0))
    first = Thread(target=lambda: pipeline(return_state=True))
    first.start()
    wait_for(lambda: "train@a" in ran())
    with pytest.raises(BusyError, match=rf"since \d\d:\d\d:\d\d: process {os.getpid()} on "):
        pipeline()
    first.join()
    assert "train-a" in [path.name for path in Path().iterdir()]


def test_a_run_that_is_cancelled_in_prefect_ends_what_it_started(prefect, toy):
    toy(a=(60, 0))
    states = []
    thread = Thread(target=lambda: states.append(pipeline(return_state=True)))
    thread.start()
    wait_for(lambda: "train@a" in ran())
    run = json.loads(CHECKOUT.read_text())["flow_run"]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    thread.join(20)
    assert states[0].is_cancelled()
    assert not running()


def running():
    """Returns the processes of stages that are alive."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if "stage.py" in " ".join(process.info["cmdline"] or ()) and process.info["cwd"] == str(Path.cwd()):
            found += [process] if process.info["status"] != psutil.STATUS_ZOMBIE else []
    return found


FLOW = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from flows import cli, pipeline
from stages import check
from convoy import params
from convoy.tracking import runs
check.check = runs.end_abandoned = lambda: None
params.load = lambda: {NO_ENTRIES!r}
pipeline.devices.tempfile.gettempdir = os.getcwd
sys.exit(cli.main(["run", "--slots", "1"]))
"""


@pytest.fixture
def started(toy, tmp_path, monkeypatch):
    """A function that starts the command in a process of its own."""
    (tmp_path / "flow.py").write_text(FLOW)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def start():
        return subprocess.Popen(
            [sys.executable, "flow.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    return start


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_fault_21_whatever_ends_the_flow_ends_what_it_started_and_the_next_run_goes_on(started, toy, how):
    toy(a=(60, 0))
    process = started()
    wait_for(lambda: "train@a" in ran(), 90)
    process.send_signal(how)
    begin = time.monotonic()
    wait_for(lambda: not running(), 5)
    assert time.monotonic() - begin < 5
    said = process.communicate(timeout=60)[0]
    assert process.returncode == (-9 if how == signal.SIGKILL else 130 if how == signal.SIGINT else 143), said
    toy(a=(0, 0))
    again = started()
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert [what for name, what, *_ in events() if name == "first"] == ["begins", "ends"]
    assert ("the last pipeline did not end" in said) == (how == signal.SIGKILL)
    with sqlite3.connect("prefect/prefect.db") as database:
        states = database.execute("SELECT state_type FROM flow_run ORDER BY start_time").fetchall()
    assert states == [("CRASHED",), ("COMPLETED",)]


def test_the_slot_of_a_killed_training_is_taken_at_once(started, toy):
    toy(a=(60, 0), b=(60, 0))
    process = started()
    wait_for(lambda: any(name.startswith("train") for name in ran()), 90)
    former = next(name for name in ran() if name.startswith("train"))
    [stage] = running()[-1:]
    stage.kill()
    begin = time.monotonic()
    wait_for(lambda: len({name for name in ran() if name.startswith("train")}) == 2, 10)
    print(f"taken after {time.monotonic() - begin:.2f} s")
    assert time.monotonic() - begin < 4  # starting dvc takes one or two of them
    assert former in ran()
    process.terminate()
    process.communicate(timeout=60)
    wait_for(lambda: not running(), 5)


def test_the_page_of_a_run_lists_every_stage_by_its_name(started, toy, monkeypatch):
    toy(a=(0, 0), b=(0, 0))
    address = session.start(ui=True)
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert started().wait(120) == 0
    [run] = httpx.post(f"{address}/flow_runs/filter", json={}).json()
    names = {"first", "train@a", "train@b", "evaluate@a", "evaluate@b"}
    place = f"{address.removesuffix('/api')}/runs/flow-run/{run['id']}?tab=Task+Runs"
    with browser(Path.cwd() / "browser") as tab:
        tab.go(place)
        text = text_once(tab, lambda text: names <= set(text.split()))
    assert names <= set(text.split()), text


def test_fault_22_a_server_that_goes_away_meanwhile_costs_a_warning_and_no_work(started, toy, monkeypatch):
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(free_port())]
    address = f"http://127.0.0.1:{command[-1]}/api"
    monkeypatch.setenv("PREFECT_HOME", str(Path.cwd() / "other"))
    with Path("server.log").open("w") as log:
        other = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    monkeypatch.setenv("PREFECT_HOME", str(Path.cwd() / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", address)
    try:
        wait_for(lambda: session.find_outage(address) is None, 120)
        toy(a=(5, 0))
        process = started()
        wait_for(lambda: "train@a" in ran(), 90)
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    said = process.communicate(timeout=150)[0]  # minutes, where it waits at its end to tell the server of each task
    assert process.returncode == 0, said
    assert said.count("warning: the Prefect server") == 1
    assert f"warning: the Prefect server {address} went away; going on without it from what is done" in said
    assert [what for name, what, *_ in events() if name in ("first", "train@a")] == ["begins", "ends"] * 2
    assert "evaluate@a" in ran()


class Replaced(Exception):  # noqa: N818 - it is no error
    """Stands for the new process, in which the command begins again."""


@pytest.fixture
def lost(toy, monkeypatch):
    """A function by which ``convoy run`` loses its server while somebody may ask it to end."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv(command.BEGUN, "")  # what the command sets is gone after the test
    monkeypatch.delenv(command.BEGUN)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(session, "connect", lambda: nullcontext("http://127.0.0.1:9/api"))

    def replaced(*_):
        raise Replaced

    monkeypatch.setattr(os, "execv", replaced)

    def run(*words, asked=None, gone=True):
        def flow(*_, **__):
            try:
                if asked is not None:
                    raise asked
            finally:
                raise httpx.ConnectError("refused")

        monkeypatch.setattr(module, "pipeline", flow)
        monkeypatch.setattr(session, "find_outage", lambda _: "refused" if gone else None)
        return cli.main(["run", *words])

    return run


@pytest.mark.parametrize(("gone", "address"), [(True, ""), (False, "http://127.0.0.1:9/api")])
def test_fault_22_the_command_begins_again(lost, capsys, gone, address):
    with pytest.raises(Replaced):
        lost("train", gone=gone)
    assert os.environ["PREFECT_API_URL"] == address
    assert abs(int(os.environ[command.BEGUN]) - time.time()) < 60
    what = "went away; going on without it" if gone else "was away for a while; going on"
    assert capsys.readouterr().err == f"warning: the Prefect server http://127.0.0.1:9/api {what} from what is done\n"


def test_fault_22_run_restarts_once_and_not_where_it_would_repeat_everything(lost, monkeypatch, capsys):
    assert lost("--force") == ServiceError.status
    monkeypatch.setenv(command.BEGUN, "5")
    assert lost() == ServiceError.status
    said = "error: the Prefect server http://127.0.0.1:9/api went away. Run again: what is done is kept.\n"
    assert capsys.readouterr().err == 2 * said
    assert command.BEGUN not in os.environ


def test_fault_22_run_that_is_asked_to_end_does_not_restart(lost):
    assert lost(asked=KeyboardInterrupt()) == 130
    with pytest.raises(SystemExit, match="143"):
        lost(asked=TerminationSignal(signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        lost(asked=SystemExit(143))


def test_fault_22_without_the_server_that_is_set_it_goes_on_with_a_warning(started, toy, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    toy(a=(0, 0))
    process = started()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "warning: the Prefect server http://127.0.0.1:9/api does not answer" in said
    assert "train@a" in ran()
