import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_of
from mlflow.exceptions import MlflowException

from convoy.tracking import outbox, registry, retention, runs, store


@pytest.mark.slow
def test_fault_19_eight_processes_that_start_at_once_share_one_fresh_store(workspace):
    script = (
        "import sys, time; from convoy.tracking import runs\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "with runs.run(f'train@m{sys.argv[1]}', 'd', {'a': {'b': 1}}, {}): runs.log_metrics({'loss': 1.0})"
    )
    start = str(time.time() + 12)  # after all of them have imported MLflow
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number), start],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 8, errors
    client = store.connect()
    experiment = client.get_experiment_by_name("d")
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in found} == {f"train@m{number}" for number in range(8)}
    assert {run.data.params["a.b"] for run in found} == {"1"}
    assert experiment.artifact_location == (workspace / "mlartifacts/d").as_uri()


@pytest.mark.slow
def test_the_commit_and_what_is_not_committed_go_with_the_run(workspace, monkeypatch):
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("config", "user.email", "t@example.org")
    git("config", "user.name", "t")
    (workspace / ".gitignore").write_text("mlflow.db*\nmlartifacts\ndata\n")
    for name in ("code.py", "dvc.lock"):
        (workspace / name).write_text("1\n")
    git("add", "-A")
    git("commit", "-qm", "x")
    (workspace / "dvc.lock").write_text("2\n")  # DVC writes it as it goes: not a change of the user's
    with runs.run("train@a", "d", {}, {}) as clean:
        pass
    (workspace / "code.py").write_text("2\n")
    git("config", "color.ui", "always")
    with runs.run("train@b", "d", {}, {}) as dirty:
        pass
    client = store.connect()
    tags = [client.get_run(run_id).data.tags for run_id in (clean, dirty)]
    assert [tag["git.dirty"] for tag in tags] == ["false", "true"]
    assert {tag["git.commit"] for tag in tags} == {git("rev-parse", "HEAD")}
    patch = workspace / "mlartifacts/d" / dirty / "artifacts/git.patch"
    git("checkout", "code.py")
    git("apply", str(patch))
    assert (workspace / "code.py").read_text() == "2\n"
    git("checkout", "code.py")
    (workspace / "new.py").write_text("3\n")
    assert outbox.git()[1:] == (True, "")  # git does not know the file, but the code is another
    (workspace / "inner").mkdir()
    monkeypatch.chdir(workspace / "inner")
    assert outbox.git() == ("none", False, "")  # a folder that some other repository contains


def test_the_address_is_absolute_and_the_environment_has_the_last_word(workspace, monkeypatch):
    assert store.uri() == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store.uri() == "http://127.0.0.1:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert store.uri() == f"sqlite:///{workspace}/other.db"


@pytest.fixture
def trained(workspace):
    """What run.json says of a run that has ended."""
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        pass
    time.sleep(0.01)
    return {"record_id": run.id, "dataset": "d", "model": "a"}


def test_a_run_deleted_in_the_browser_is_taken_back(trained):
    client, run_id = store.connect(), run_of(trained)
    client.delete_run(run_id)
    with runs.reopened(trained) as found:
        runs.log_metrics({"x": 1.0})
    assert found == run_id
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_what_is_added_later_does_not_lengthen_a_run(trained):
    client, run_id = store.connect(), run_of(trained)
    ended = client.get_run(run_id).info.end_time
    with runs.reopened(trained):
        runs.log_metrics({"x": 1.0})
    found = client.get_run(run_id)
    assert (found.info.end_time, found.info.status, found.data.metrics["x"]) == (ended, "FINISHED", 1.0)


def test_neither_does_what_fails_later(trained):
    client, run_id = store.connect(), run_of(trained)
    ended = client.get_run(run_id).info.end_time
    with pytest.raises(OSError), runs.reopened(trained):
        raise OSError
    assert (client.get_run(run_id).info.status, client.get_run(run_id).info.end_time) == ("FAILED", ended)
    with runs.reopened(trained):
        pass
    assert (client.get_run(run_id).info.status, client.get_run(run_id).info.end_time) == ("FINISHED", ended)


@pytest.mark.slow
def test_a_registry_that_cannot_answer_is_no_registry_without_a_champion(workspace, monkeypatch):
    assert registry.champion("d") is None

    def fail(*_):
        raise MlflowException("down", error_code=1)  # INTERNAL_ERROR

    monkeypatch.setattr(store.MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="down"):
        registry.champion("d")


@pytest.mark.slow
def test_fault_21_open_runs_of_processes_that_died_are_ended_as_killed_and_those_that_work_are_not(workspace):
    script = (
        "import sys, time; from convoy.tracking import runs\n"
        "with runs.run(f'train@{sys.argv[1]}', 'd', {}, {}): print('open', flush=True); time.sleep(120)"
    )
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, name],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True,
        )
        for name in ("dead", "alive")
    }  # fmt: skip
    try:
        for process in running.values():
            while "open" not in process.stdout.readline():
                assert process.poll() is None
        running["dead"].kill()
        running["dead"].wait()
        runs.end_abandoned()
        client = store.connect()
        found = client.search_runs([client.get_experiment_by_name("d").experiment_id])
        assert {run.data.tags["model"]: run.info.status for run in found} == {"dead": "KILLED", "alive": "RUNNING"}
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_searches_of_before_may_go_with_their_trials(workspace):
    ids = {}
    for number in range(3):
        with runs.run("tune@lenet5", "d", {}, {}) as search:
            trials = []
            for trial in range(2):
                with runs.nested(search, f"trial {trial}", {"batch": 8}) as inner:
                    trials.append(inner._run_id)
        ids[number] = {search, *trials}
    for last, gone in ((3, set()), (1, ids[0] | ids[1]), (0, ids[0] | ids[1] | ids[2])):
        _, go = retention.unneeded(["d"], last, kept_runs=())
        assert set(go.runs) == gone
    retention.remove(go)
    client = store.connect()
    assert client.search_runs([client.get_experiment_by_name("d").experiment_id]) == []
