"""The schedule lives: a real server that is restarted, a real worker, an outage; and what the night's work does."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from conftest import NO_ENTRIES, ROOT
from ruamel.yaml import YAML
from servers import answering

from convoy.machine import guard
from flows import nightly
from flows.session import free_port

GRAPH = """
stages:
  first:
    cmd: echo first >> ran && cat data/raw/source > first
    deps: [data/raw/source]
    outs: [first]
  second:
    cmd: echo second >> ran && cat first > second
    deps: [first]
    outs: [second]
"""


@pytest.fixture
def checkout(workspace):
    """A checkout of two stages that read what ``dvc import-url`` copies from ``origin``; ran lists every run."""
    (workspace / "params.yaml").write_text(json.dumps(NO_ENTRIES))
    (workspace / "dvc.yaml").write_text(GRAPH)
    (workspace / "origin").write_text("1")
    (workspace / "data/raw").mkdir()
    for name in ("flows", "stages", "convoy"):
        (workspace / name).symlink_to(ROOT / name)
    dvc("init", "--no-scm", "-q")
    dvc("import-url", str(workspace / "origin"), "data/raw/source")
    return workspace


def dvc(*words):
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


def ran():
    return Counter(Path("ran").read_text().split()) if Path("ran").exists() else Counter()


@contextmanager
def listening():
    """A webhook: yields its address and what it was told."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with answering(Handler) as port:
        yield f"http://127.0.0.1:{port}/secret", told


def test_a_night_takes_new_data_works_sends_and_tells_of_a_new_champion(
    prefect, checkout, tmp_path_factory, monkeypatch, caplog
):
    storage = tmp_path_factory.mktemp("storage")
    dvc("remote", "add", "-d", "storage", str(storage))
    monkeypatch.setattr(nightly.params, "load", lambda: NO_ENTRIES | {"register": {"digits": {}}})
    holders = iter([None, SimpleNamespace(version="3", tags={"model": "resnet"})])
    monkeypatch.setattr(nightly.registry, "champion", lambda dataset: next(holders))
    monkeypatch.setattr("flows.pipeline.check.check", lambda: None)
    with listening() as (address, told):
        monkeypatch.setenv(nightly.WEBHOOK, address)
        assert nightly.nightly(return_state=True).is_completed()
        assert told == [{"text": "digits: champion is now version 3 (resnet), before nobody"}]
        assert ran() == {"first": 1, "second": 1}
        assert any(path.is_file() for path in storage.rglob("*"))  # it was sent

        (checkout / "origin").write_text("2")
        monkeypatch.setattr(nightly.registry, "champion", lambda dataset: None)
        assert nightly.nightly(return_state=True).is_completed()
        assert ran() == {"first": 2, "second": 2}
        assert Path("second").read_text() == "2"
        assert len(told) == 1  # nobody new

        monkeypatch.setenv(nightly.WEBHOOK, "http://127.0.0.1:9/secret")
        champions = iter("12")
        monkeypatch.setattr(nightly, "_describe_champion", lambda dataset: next(champions))
        assert nightly.nightly(return_state=True).is_completed()
        assert "the webhook did not take it: ConnectError" in caplog.text
        assert "/secret" not in caplog.text


class Machine:
    """A Prefect server and a worker that can be stopped and started; what they print is in files."""

    def __init__(self, folder):
        self.port = free_port()
        hidden = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
        self.env = {key: value for key, value in guard.environment().items() if key not in hidden}
        self.env |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"}
        self.env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.env |= {"PREFECT_API_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
        self.processes = {}

    def start(self, name, *words):
        command = [sys.executable, "-m", "prefect", *words]
        with Path(f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        if name == "server":
            wait_for(lambda: self.get("health"), 120)

    def stop(self, name):
        process = self.processes.pop(name)
        os.killpg(process.pid, 9)
        process.wait()

    def get(self, path):
        try:
            return httpx.get(f"{self.env['PREFECT_API_URL']}/{path}", timeout=5).is_success
        except httpx.TransportError:
            return False

    def run(self, *words):
        done = subprocess.run([sys.executable, "-m", "prefect", *words], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def runs(self):
        """Returns the runs of nightly that are not in the future, oldest first."""
        query = {"flows": {"name": {"any_": ["nightly"]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = httpx.post(f"{self.env['PREFECT_API_URL']}/flow_runs/filter", json=query, timeout=30).json()
        return [(run["state_type"], run["state_name"], run["id"]) for run in found if run["state_type"] != "SCHEDULED"]

    def late(self):
        query = {"flow_runs": {"state": {"name": {"any_": ["Late"]}}}}
        return self.count(query)

    def under_way(self):
        return self.count({"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}})

    def count(self, query):
        return httpx.post(f"{self.env['PREFECT_API_URL']}/flow_runs/count", json=query, timeout=30).json()


@pytest.fixture
def machine(checkout):
    machine = Machine(checkout)
    yield machine
    for name in list(machine.processes):
        machine.stop(name)


def wait_for(condition, seconds):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "".join(path.read_text()[-3000:] for path in Path().glob("*.log"))
        time.sleep(0.5)


def completed(machine):
    return [run for run in machine.runs() if run[0] == "COMPLETED"]


def test_the_deployment_runs_again_and_again_through_a_restart_and_once_after_an_outage(checkout, machine):
    deployment = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())
    deployment["deployments"][0]["schedules"] = [{"interval": timedelta(seconds=25).total_seconds()}]
    (checkout / "prefect.yaml").write_text(json.dumps(deployment))
    machine.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(machine.port))
    machine.run("work-pool", "create", "convoy", "--type", "process")
    machine.run("--no-prompt", "deploy", "--all")
    machine.start("worker", "worker", "start", "--pool", "convoy")
    wait_for(lambda: len(completed(machine)) == 1, 150)
    assert ran() == {"first": 1, "second": 1}

    machine.stop("server")
    machine.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(machine.port))
    wait_for(lambda: len(completed(machine)) >= 2, 150)
    assert ran() == {"first": 1, "second": 1}  # all of it was up to date

    # A run that is killed with its worker would hold the only place of the deployment until its lease ends.
    wait_for(lambda: not machine.under_way(), 150)
    machine.stop("worker")
    before = len(machine.runs())
    wait_for(lambda: machine.late() >= 3, 200)
    machine.start("worker", "worker", "start", "--pool", "convoy")
    wait_for(lambda: len(machine.runs()) >= before + 3 and len(completed(machine)) >= 3, 120)
    after = Counter(state for state, _, _ in machine.runs()[before : before + 3])
    assert after == {"COMPLETED": 1, "CANCELLED": 2}
