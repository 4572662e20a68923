"""What a stage says reaches MLflow whatever becomes of the stage, of MLflow, and of who ships it."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT, run_of, wait_for
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from convoy.errors import ServiceError
from convoy.tracking import outbox, runs, shipping, store
from flows.session import free_port

SPEAKS = """
import sys, time
from convoy.tracking import outbox
with outbox.run("0" * 32, "train@a", "d", {"rate": 0.1, "sizes": {"width": 2}}, {"file": "0"}) as run:
    for epoch in range(1, 6):
        started = time.perf_counter()
        run.metrics({"epoch": epoch, "loss": 1 / epoch}, epoch)
        print(time.perf_counter() - started, flush=True)
        time.sleep(float(sys.argv[1]))
    run.facts({"record_id": run.id, "memory": 7, "backend": "x", "libraries": {"keras": "3"}})
"""


def speaker(seconds, **environment):
    """Starts a process that records a run, an epoch every so many seconds."""
    return subprocess.Popen(
        [sys.executable, "-c", SPEAKS, str(seconds)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def waiting():
    return list(outbox.FOLDER.glob("*.jsonl"))


def shipped():
    client = store.connect()
    experiment = client.get_experiment_by_name("d")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def curve(run):
    return [point.value for point in store.connect().get_metric_history(run.info.run_id, "loss")]


@pytest.mark.slow
def test_a_run_is_in_mlflow_when_its_stage_ends_and_nothing_is_left(workspace):
    speaking = speaker(0)
    assert speaking.communicate()[1] == ""
    [run] = shipped()
    assert (run.info.run_name, run.info.status) == ("train@a", "FINISHED")
    assert run.data.params == {"rate": "0.1", "sizes.width": "2"}
    assert {"git.commit", "git.dirty", "process", "record", "input.file", "backend", "libraries.keras"} <= set(
        run.data.tags
    )
    assert run.data.metrics["memory"] == 7
    assert curve(run) == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert [path.name for path in outbox.FOLDER.iterdir()] == ["train@a.lock"]


@pytest.mark.slow
def test_epochs_are_seen_while_the_training_goes_on_and_a_killed_one_ends_as_killed(workspace):
    speaking = speaker(20)
    try:
        wait_for(lambda: shipped() and curve(shipped()[0]), 60)
        assert shipped()[0].info.status == "RUNNING"
        wait_for(lambda: any(key.startswith("system/") for key in shipped()[0].data.metrics), 60)
        speaking.send_signal(signal.SIGKILL)
        wait_for(lambda: shipped()[0].info.status == "KILLED" and not waiting(), 60)
    finally:
        os.killpg(speaking.pid, signal.SIGKILL) if speaking.poll() is None else None
        speaking.communicate()


def test_a_shipper_outlives_the_stage_that_dvc_runs(monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train@a")
    started = []

    def start(command, *, env, **_):
        started.append(env)
        return SimpleNamespace(stdout=[], wait=lambda seconds: None)

    monkeypatch.setattr(subprocess, "Popen", start)
    outbox.Shipper("0" * 32, "train@a").wait(0)
    assert "DVC_STAGE" not in started[0]  # by which orphans.watch would end it with the stage
    assert started[0]["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.mark.slow
def test_fault_18_what_nobody_shipped_is_shipped_later(workspace, monkeypatch):
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        run.metrics({"loss": 1.0}, 1)
    with outbox.path(run.id).open("a") as file:
        file.write('{"what": "metr')  # a line that was being written when its process died
    assert shipped() == []
    assert shipping.ship() == 1
    assert curve(shipped()[0]) == [1.0]
    assert shipping.ship() == 0
    assert len(shipped()) == 1


@pytest.mark.slow
def test_fault_18_a_shipper_that_dies_between_two_lines_loses_none_and_doubles_none(workspace, monkeypatch):
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        for epoch in range(1, 4):
            run.metrics({"loss": 1 / epoch}, epoch)
    upload, died = shipping._Shipment._upload, []

    def dies(self, client, line, watched):
        upload(self, client, line, watched)
        if line["what"] == "metrics" and line["step"] == 2 and not died:
            died.append(line)
            raise KeyboardInterrupt  # after MLflow has the line, and before that is written down

    monkeypatch.setattr(shipping._Shipment, "_upload", dies)
    with pytest.raises(KeyboardInterrupt):
        shipping.ship()
    assert shipping.ship() == 1
    [found] = shipped()
    assert (curve(found), found.info.status) == ([1, 1 / 2, 1 / 3], "FINISHED")


@pytest.mark.slow
def test_fault_18_a_server_that_is_down_costs_one_warning_and_no_time_and_no_point(workspace):
    port = free_port()
    address = {"MLFLOW_TRACKING_URI": f"http://somebody:secret-word@127.0.0.1:{port}"}
    speaking = speaker(0.5, **address)
    said, errors = speaking.communicate()
    assert speaking.returncode == 0
    assert max(map(float, said.split())) < 0.2
    [warning] = errors.splitlines()
    assert warning.startswith(f"warning: http://***@127.0.0.1:{port} cannot be used now: ")
    assert "secret-word" not in errors + said
    assert f"What train@a says waits in {waiting()[0]}" in warning
    assert shipping.ship() == 1  # to the store of the checkout, now
    assert curve(shipped()[0]) == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["locked", "damaged"])
def test_fault_20_a_store_that_is_locked_or_damaged_is_named_with_the_cause(workspace, monkeypatch, what):
    with outbox.run("0" * 32, "train@a", "d", {}, {}):
        pass
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
    with outbox.run("1" * 32, "train@b", "d", {}, {}) as run:  # whose training is not held up
        run.metrics({"loss": 1.0}, 1)
    database = workspace / "mlflow.db"
    whole = database.read_bytes()
    if what == "locked":
        holder = sqlite3.connect(database, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        database.write_bytes(b"x" * 4096 + whole[4096:])
    for words in (("ship",), ("trace", "d@1")):
        done = subprocess.run(
            [sys.executable, "-m", "stages", *words], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == ServiceError.status, done.stderr
        assert f"error: sqlite:///{database} cannot be used now: " in done.stderr
        assert {"locked": "database is locked", "damaged": "file is not a database"}[what] in done.stderr
    if what == "locked":
        holder.close()
    else:
        database.write_bytes(whole)
    assert shipping.ship() == 1


def test_ship_says_what_cannot_be_reached(workspace, monkeypatch):
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
    with outbox.run("0" * 32, "train@a", "d", {}, {}):
        pass
    for variable, value in store.PATIENCE.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match=r"cannot be used now: .*What train@a said waits in data/runs/"):
        shipping.ship()
    assert len(waiting()) == 1


def test_what_mlflow_refuses_does_not_hold_up_the_rest(workspace, capsys):
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        run.metrics({"not a name!": 1.0, "loss": 1.0}, 1)
        run.metrics({"loss": 0.5}, 2)
    assert "warning: MLflow refused metrics of a run: " in capsys.readouterr().err
    assert curve(shipped()[0])[-1] == 0.5


def test_a_record_can_go_on_after_it_was_shipped(workspace):
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        pass
    ended = shipped()[0].info.end_time
    time.sleep(0.01)
    facts = {"record_id": run.id, "model": "a", "dataset": "d"}
    with outbox.reopened(facts) as again:
        again.metrics({"test_accuracy": 0.5})
    [found] = shipped()
    assert (found.data.metrics["test_accuracy"], found.info.end_time) == (0.5, ended)
    with pytest.raises(OSError), outbox.reopened(facts):
        raise OSError  # before anything was said: the training is not to blame
    assert shipped()[0].info.status == "FINISHED"
    assert run_of(facts) == found.info.run_id


def test_the_same_training_once_more_is_a_run_of_its_own(workspace):
    for _ in range(2):
        with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
            run.metrics({"loss": 1.0}, 1)
        time.sleep(0.01)
    assert sorted(run.data.tags["record"] for run in shipped()) == ["0" * 32, "0" * 32 + ", before"]
    assert [curve(run) for run in shipped()] == [[1.0], [1.0]]
    assert run_of({"run_id": "0" * 32, "dataset": "d"}) == shipped()[0].info.run_id  # the newest


def test_run_that_died_and_started_again_ended_as_killed(workspace, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(outbox.Record, "close", lambda self, status: None)
        patch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
        with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
            run.metrics({"loss": 1.0}, 1)
    time.sleep(0.01)
    with outbox.run("0" * 32, "train@a", "d", {}, {}):
        pass
    assert [run.info.status for run in shipped()] == ["FINISHED", "KILLED"]


def test_what_a_training_took_is_known_where_it_ran(workspace):
    facts = {"model": "a", "dataset": "d", "record_id": "0" * 32}
    assert outbox.measured(facts) == {}
    outbox.keep(facts, {"seconds": 1.5})
    assert outbox.measured(facts) == {"seconds": 1.5}
    assert outbox.measured(facts | {"record_id": "1" * 32}) == {}  # of another training


@pytest.mark.slow
def test_mlflows_own_id_stands_beside_the_records_once_it_is_known_and_an_older_record_costs_no_figures(unshipped):
    def known():
        return json.loads((outbox.RUN_IDS / "d/a.json").read_text())

    older, newer = unshipped("0"), unshipped("1")
    facts = {"model": "a", "dataset": "d", "record_id": "1" * 32}
    outbox.keep(facts, {"seconds": 1.5})
    assert not outbox.RUN_IDS.exists()  # the store was away
    os.utime(older, (1, 1))
    shipping.ship()
    assert not older.exists()
    assert not newer.exists()
    assert known() == {"record_id": "1" * 32, "run_id": run_of(facts)}
    assert store.connect().get_run(known()["run_id"]).info.status == "FINISHED"
    assert outbox.measured(facts) == {"seconds": 1.5}


def test_files_of_an_older_convoy_call_the_record_run_id(workspace):
    facts = {"model": "a", "dataset": "d", "run_id": "0" * 32}
    (outbox.MEASURED / "d").mkdir(parents=True)
    (outbox.MEASURED / "d/a.json").write_text(json.dumps({"run_id": "0" * 32, "seconds": 1.5}))
    assert outbox.record_id(facts) == "0" * 32
    assert outbox.measured(facts) == {"seconds": 1.5}
    assert outbox.measured(facts | {"record_id": "0" * 32}) == {"seconds": 1.5}


def test_figures_that_a_power_cut_left_empty_are_unknown(workspace):
    (outbox.MEASURED / "d").mkdir(parents=True)
    (outbox.MEASURED / "d/a.json").touch()
    assert outbox.measured({"model": "a", "dataset": "d", "record_id": "0" * 32}) == {}
    outbox.keep({"model": "a", "dataset": "d", "record_id": "0" * 32}, {"seconds": 1.5})
    assert outbox.measured({"model": "a", "dataset": "d", "record_id": "0" * 32}) == {"seconds": 1.5}


def test_a_line_is_whole_json_and_on_the_disk_before_the_work_goes_on(workspace, monkeypatch):
    synced = []
    monkeypatch.setattr(outbox.os, "fsync", lambda number: synced.append(number))
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))
    with outbox.run("0" * 32, "train@a", "d", {"words": "ä"}, {}) as run:
        run.metrics({"loss": float("inf")}, 1)
    lines = [json.loads(line) for line in outbox.path(run.id).read_text().splitlines()]
    assert [line["what"] for line in lines] == ["open", "metrics", "close"]
    assert len(synced) == 3


@pytest.fixture
def unshipped(workspace, monkeypatch):
    """A function that records a run which nobody has shipped yet."""
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: subprocess.Popen(["true"]))

    def unshipped(digit, name="train@a"):
        with outbox.run(digit * 32, name, "d", {"rate": 0.1}, {}) as run:
            run.metrics({"loss": 1.0}, 1)
        return outbox.path(run.id)

    return unshipped


@pytest.mark.slow
def test_fault_43_a_store_that_is_locked_while_a_run_opens_and_free_then_gets_everything(unshipped, monkeypatch):
    store.connect()
    file, tries = unshipped("0"), []
    update_run = store.MlflowClient.update_run

    def locked(self, *words, **more):
        tries.append(words)
        if len(tries) == 1:
            raise MlflowException("(sqlite3.OperationalError) database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        return update_run(self, *words, **more)

    monkeypatch.setattr(store.MlflowClient, "update_run", locked)
    shipment = shipping._Shipment(file.stem)  # as a shipper that tries, and tries once more
    with shipment.alone():
        assert "database is locked" in shipment.go()
        assert shipment.go() == ""
        assert shipment.leave()
    [run] = shipped()
    assert (curve(run), run.data.params, run.info.status) == ([1.0], {"rate": "0.1"}, "FINISHED")


@pytest.mark.slow
def test_fault_43_record_that_an_older_convoy_noted_as_shipped_to_no_run_is_uploaded(unshipped):
    file = unshipped("0")
    state = {"bytes": len(file.read_bytes().splitlines(keepends=True)[0]), "run": None, "open": True, "later": False}
    file.with_suffix(".shipped").write_text(json.dumps(state | {"at": 0}))
    assert shipping.ship() == 1
    assert curve(shipped()[0]) == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b'{"what": "nothing we know", "at": 1}\n', b"[1]\n", b'{"at": 1}\n'])
def test_fault_43_record_that_cannot_be_uploaded_is_set_aside_and_named_and_holds_nothing_up(unshipped, damage, capsys):
    bad, good = unshipped("0", "train@bad"), unshipped("1", "train@good")
    bad.write_bytes(bad.read_bytes() + damage)
    os.utime(bad, (1, 1))  # it is the first
    assert shipping.ship() == 1
    said = capsys.readouterr().err
    assert f"{bad} cannot be uploaded to sqlite:///" in said
    assert f"is named {bad}.aside now" in said
    assert not good.exists()
    assert bad.with_name(f"{bad.name}.aside").exists()
    assert {run.info.run_name for run in shipped()} == {"train@bad", "train@good"}
    assert shipping.ship() == 0
    assert capsys.readouterr().err == ""


def test_fault_43_a_record_whose_first_line_is_damaged_is_set_aside_too(unshipped, capsys):
    file = unshipped("0")
    file.write_bytes(b"\xff\x00\n" + file.read_bytes())
    assert shipping.ship() == 0
    assert f"is named {file}.aside now" in capsys.readouterr().err


@pytest.mark.slow
def test_fault_43_a_line_that_was_cut_off_costs_that_line_alone(unshipped, capsys):
    file = unshipped("0")
    with file.open("ab") as lines:
        lines.write(b'{"what": "metrics", "numbers": {"lo')  # a full disk
    unshipped("0")  # the next process of the same run
    assert shipping.ship() == 1
    assert f"{file} has a line that was cut off" in capsys.readouterr().err
    assert sorted(curve(run) for run in shipped()) == [[1.0], [1.0]]  # it begins once more


def test_fault_43_a_record_set_aside_replaces_none(unshipped):
    for _ in range(2):
        file = unshipped("0")
        file.write_bytes(b"no JSON\n")
        assert shipping.ship() == 0
    assert [one.name for one in outbox.aside()] == [f"{file.name}.aside", f"{file.name}1.aside"]


@pytest.mark.slow
def test_fault_43_one_record_that_is_refused_for_now_keeps_no_other_waiting(unshipped, monkeypatch):
    first, second = unshipped("0", "train@first"), unshipped("1", "train@second")
    os.utime(first, (1, 1))
    create = store.MlflowClient.create_run

    def refused(self, experiment, at=None, tags=None, name=None):
        if name == "train@first":
            raise MlflowException("no room for it", error_code=TEMPORARILY_UNAVAILABLE)
        return create(self, experiment, at, tags, name)

    monkeypatch.setattr(store.MlflowClient, "create_run", refused)
    with pytest.raises(ServiceError, match="no room for it.*train@first said waits"):
        shipping.ship()
    assert first.exists()
    assert not second.exists()
    facts = {"record_id": second.stem, "model": "second", "dataset": "d"}
    with runs.reopened(facts):  # as register does
        pass


@pytest.mark.slow
def test_fault_43_a_run_that_was_removed_for_good_while_it_was_shipped_is_begun_once_more(unshipped):
    file = unshipped("0")
    shipment = shipping._Shipment(file.stem)
    with shipment.alone():
        assert shipment.go() == ""
    client = store.connect()
    with sqlite3.connect("mlflow.db") as database:  # as mlflow gc does
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    with file.open("a") as lines:
        lines.write(json.dumps({"what": "metrics", "at": 5, "numbers": {"loss": 0.5}, "step": 2}) + "\n")
    assert shipping.ship() == 1
    [run] = client.search_runs([client.get_experiment_by_name("d").experiment_id])
    assert sorted(curve(run)) == [0.5, 1.0]


def test_a_shipper_keeps_no_output_of_its_stage_open(workspace):
    port = free_port()
    with socket.socket() as hanging:  # takes connections, and never answers
        hanging.bind(("127.0.0.1", port))
        hanging.listen()
        script = SPEAKS.replace("with outbox.run", "outbox.WAIT = 0.1\nwith outbox.run")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"},
        )  # fmt: skip
        seconds = time.monotonic() - began
        others = [
            one for one in psutil.process_iter(["cmdline", "cwd"])
            if "0" * 32 in (one.info["cmdline"] or []) and one.info["cwd"] == str(workspace)
        ]  # fmt: skip
        assert others  # it goes on by itself
        for one in others:
            one.kill()
    assert done.returncode == 0
    assert seconds < 15  # a shipper waits longer than that for a server that hangs
