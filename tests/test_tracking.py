import subprocess
import sys

from conftest import ROOT

from stages import tracking


def test_eight_processes_that_start_at_once_share_one_fresh_store(workspace):
    script = (
        "import sys, time; from stages import tracking\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "with tracking.run(f'train@m{sys.argv[1]}', 'd', {'a': {'b': 1}}, {}): tracking.log_metrics({'loss': 1.0}, 1)"
    )
    import time

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
    client = tracking._connect()
    experiment = client.get_experiment_by_name("d")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {f"train@m{number}" for number in range(8)}
    assert {run.data.params["a.b"] for run in runs} == {"1"}
    assert experiment.artifact_location == (workspace / "mlartifacts/d").as_uri()


def test_the_commit_and_what_is_not_committed_go_with_the_run(workspace):
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("config", "user.email", "t@example.org")
    git("config", "user.name", "t")
    for name in ("code.py", "dvc.lock"):
        (workspace / name).write_text("1\n")
    git("add", "-A")
    git("commit", "-qm", "x")
    (workspace / "dvc.lock").write_text("2\n")  # DVC writes it as it goes: not a change of the user's
    with tracking.run("train@a", "d", {}, {}) as clean:
        pass
    (workspace / "code.py").write_text("2\n")
    with tracking.run("train@b", "d", {}, {}) as dirty:
        pass
    client = tracking._connect()
    tags = [client.get_run(run_id).data.tags for run_id in (clean, dirty)]
    assert [tag["git.dirty"] for tag in tags] == ["false", "true"]
    assert {tag["git.commit"] for tag in tags} == {git("rev-parse", "HEAD")}
    patch = workspace / "mlartifacts/d" / dirty / "artifacts/git.patch"
    assert "-1\n+2" in patch.read_text()


def test_the_address_is_absolute_and_the_environment_has_the_last_word(workspace, monkeypatch):
    assert tracking.uri() == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.uri() == "http://127.0.0.1:1"
