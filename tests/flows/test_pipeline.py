"""The road as a user goes it: a clone of the checkout, ``dvc repro``, a change, ``dvc repro``; in this order."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from mlflow import MlflowClient
from ruamel.yaml import YAML

from convoy.model.scores import scaled

ENTRIES = {  # of the shipped params.yaml, smaller
    "lenet5": {"epochs": 2},
    "resnet": {"epochs": 1, "sizes": {"stem": "cifar", "depth": 8, "width": 0.25}},
}
DATA = ("fetch", "ingest", "augment", "register")  # sections of data sets; digits stays in each


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the checkout as it stands, with two small models."""
    folder = tmp_path_factory.mktemp("clone") / "convoy"
    files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for file in files:
        if (ROOT / file).is_file() and file != "dvc.lock":
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    edit(folder, lambda params: params.update(train={k: params["train"][k] | v for k, v in ENTRIES.items()}))
    edit(folder, lambda params: params.pop("tune"))  # of models that are no more
    edit(folder, lambda params: params["augment"]["digits"].update(copies=1))
    edit(folder, lambda params: params.update({stage: {"digits": params[stage]["digits"]} for stage in DATA}))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "clone")
    return folder


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def edit(folder, change):
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    change(params)
    yaml.dump(params, folder / "params.yaml")


def environment():
    """Our commands first on the path, and nothing that points at another store or repository."""
    hidden = {"MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "PYTHONPATH"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


def run(folder, *words):
    """Runs a command of the environment in the clone; returns its output."""
    done = subprocess.run(
        words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def repro(folder):
    """Reproduces the clone's pipeline; returns the stages that ran, from the journal."""
    journal = folder / "data/journal.jsonl"
    before = len(journal.read_text().splitlines()) if journal.exists() else 0
    run(folder, "dvc", "repro")
    return {json.loads(line)["stage"] for line in journal.read_text().splitlines()[before:]}


def locked(folder, stage, name):
    outs = YAML(typ="safe").load(folder / "dvc.lock")["stages"][stage]["outs"]
    return next(out["md5"] for out in outs if out["path"].endswith(name))


def test_raw_files_become_a_registered_champion(clone):
    models = {f"{stage}@{model}" for stage in ("train", "evaluate") for model in ENTRIES}
    assert repro(clone) == models | {f"{stage}@digits" for stage in ("fetch", "ingest", "augment", "register")}
    decision = json.loads((clone / "data/register/digits/decision.json").read_text())
    assert decision["promoted"]
    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.tags["model"] == decision["model"]
    assert champion.tags["dvc.data/augment/digits/train"].endswith(".dir")  # what DVC recorded the training with
    assert f"params.train.{decision['model']}" in champion.tags
    trained = json.loads((clone / "data/train/digits" / decision["model"] / "run.json").read_text())
    source = client.get_run(champion.run_id)
    assert source.data.tags["record"] == trained["record_id"]
    assert source.info.run_name == f"train@{decision['model']}"
    assert source.data.tags["git.commit"] == git(clone, "rev-parse", "HEAD").strip()
    assert source.data.tags["git.dirty"] == "false"
    assert {file.path for file in client.list_artifacts(champion.run_id)} >= {"evaluate"}
    assert git(clone, "status", "--porcelain").split() == ["??", "dvc.lock"]


def test_a_second_run_does_nothing_and_says_so(clone):
    since = int(time.time())
    assert repro(clone) == set()
    words = run(clone, sys.executable, "-m", "flows", "show", "--since", str(since))
    assert "Nothing to do: all 8 stages are up to date." in words
    assert "champion, version 1" in words


def test_metrics_and_plots_show_all_models(clone):
    rows = json.loads(run(clone, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert {Path(path).parent.name for path in rows} == set(ENTRIES)
    assert all(row["data"]["accuracy_low"] <= row["data"]["accuracy"] for row in rows.values())
    run(clone, "dvc", "plots", "show", "-o", "plots")
    page = (clone / "plots/index.html").read_text()
    for model in ENTRIES:
        assert f"data_train_digits_{model}_history_csv" in page
        assert f"{model}_plots_confusion.png" in page
        assert f"{model}_plots_curves.png" in page
    shutil.rmtree(clone / "plots")


def test_the_champion_predicts_a_folder_a_csv_and_a_parquet(clone, tmp_path):
    tables = {}
    (clone / "data/raw/digits/0/broken.png").write_bytes(b"no picture")
    paths = sorted(path for path in (clone / "data/raw/digits").rglob("*.png"))
    pd.DataFrame({"path": paths[:5]}).astype(str).to_csv(tmp_path / "five.csv", index=False)
    pd.DataFrame({"image": [path.read_bytes() for path in paths]}).to_parquet(tmp_path / "all.parquet")
    places = {"folder": clone / "data/raw/digits", "csv": tmp_path / "five.csv", "parquet": tmp_path / "all.parquet"}
    for name, place in places.items():
        target = tmp_path / f"{name}-out.parquet"
        said = run(clone, sys.executable, "-m", "flows", "predict", "digits", str(place), str(target))
        tables[name] = pd.read_parquet(target)
    (clone / "data/raw/digits/0/broken.png").unlink()
    folder = tables["folder"].set_index("path")
    assert "1,797 examples predicted by version 1, 1 cannot be read" in said
    assert folder.loc["0/broken.png", "reason"].startswith("not a picture")
    assert tables["parquet"]["predicted"].tolist() == folder["predicted"].tolist()
    assert tables["csv"]["predicted"].tolist() == folder["predicted"][:5].tolist()
    model = json.loads((clone / "data/register/digits/decision.json").read_text())["model"]
    known = pd.read_parquet(clone / "data/evaluate/digits" / model / "predictions.parquet").set_index("path")
    assert (folder.loc[known.index, "predicted"] == known["predicted"]).all()
    metrics = json.loads((clone / "data/evaluate/digits" / model / "metrics.json").read_text())
    served = scaled(np.stack(known["probabilities"]), metrics["temperature"]).max(axis=1)
    np.testing.assert_allclose(folder.loc[known.index, "probability"], served, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none", ".", "o.csv"), "has no champion of 'none'"),
        (("digits", "nowhere", "o.csv"), "nowhere is no folder, .csv or .parquet that exists"),
        (("digits", "flows", "o.csv"), "flows has no examples (.png"),
        (("digits", ".", "o.txt"), "the ending has to be .csv or .parquet"),
    ],
)
def test_predict_reports_what_it_cannot_predict(clone, words, said):
    command = [sys.executable, "-m", "flows", "predict", *words]
    done = subprocess.run(command, cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(clone.glob("o.*"))


def test_the_flow_finds_everything_up_to_date_and_prints_the_same_table(clone, tmp_path):
    before = (clone / "dvc.lock").read_text()
    env = environment() | {"PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows", "run"]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Nothing to do: all 8 stages are up to date." in done.stdout
    assert (clone / "dvc.lock").read_text() == before
    planned = run(clone, sys.executable, "-m", "flows", "plan")
    assert "0 of 8 stages would run" in planned


def test_the_plan_says_what_would_run_and_why(clone):
    edit(clone, lambda params: params["train"]["resnet"].update(learning_rate=0.05))
    said = run(clone, sys.executable, "-m", "flows", "plan")
    edit(clone, lambda params: params["train"]["resnet"].update(learning_rate=0.1))
    assert "3 of 8 stages would run" in said
    rows = {line.split()[0]: line for line in said.splitlines() if "@" in line}
    [cost] = [line.split() for line in said.splitlines() if line.split()[:1] == ["resnet"]]
    trained = json.loads((clone / "data/train/digits/resnet/run.json").read_text())
    assert cost[1] == f"{trained['parameters']:,}"
    assert cost[2] == f"{trained['flops'] / 1e6:,.1f}"
    assert cost[-1] == "train@resnet"  # its own speed
    assert "train.resnet modified" in rows["train@resnet"]
    assert "train@resnet would run" in rows["evaluate@resnet"]
    assert "up to date" in rows["train@lenet5"]


def test_a_number_of_one_model_runs_that_model_and_the_registration(clone):
    edit(clone, lambda params: params["train"]["resnet"].update(learning_rate=0.05))
    assert repro(clone) == {"train@resnet", "evaluate@resnet", "register@digits"}


def test_an_edit_of_one_architecture_runs_that_model_and_gives_the_same_bytes(clone):
    before = locked(clone, "train@lenet5", "model.keras")
    with (clone / "stages/train/architectures/lenet5.py").open("a") as file:
        file.write("# a comment\n")
    assert repro(clone) == {"train@lenet5", "evaluate@lenet5", "register@digits"}
    assert locked(clone, "train@lenet5", "model.keras") == before


def test_a_registration_is_never_taken_from_dvcs_cache(clone):
    """Back to the first numbers: DVC knows their model, but who is champion is the registry's to say."""
    edit(clone, lambda params: params["train"]["resnet"].update(learning_rate=0.1))
    assert "register@digits" in repro(clone)
    decision = json.loads((clone / "data/register/digits/decision.json").read_text())
    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    assert decision["champion"]["version"] == int(client.get_model_version_by_alias("digits", "champion").version)


def test_a_source_that_is_the_target_is_refused_and_kept(clone):
    edit(clone, lambda params: params["fetch"].update(digits={"path": "data/raw/digits"}))
    done = subprocess.run(["dvc", "repro"], cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lie in each other" in done.stderr
    assert len(list((clone / "data/raw/digits").rglob("*.png"))) == 1797
    edit(clone, lambda params: params["fetch"].update(digits={"sample": "digits"}))


def test_a_misspelt_key_fails_before_any_stage_runs(clone):
    edit(clone, lambda params: params["train"]["resnet"].update(epoch=3))
    done = subprocess.run(
        [sys.executable, "-m", "flows", "check"], cwd=clone, capture_output=True, text=True, check=False
    )
    edit(clone, lambda params: params["train"]["resnet"].pop("epoch"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml, train.resnet: unknown key 'epoch'. Keys: dataset,")


def test_fault_07_a_model_that_cannot_fit_is_refused_and_the_others_go_on(clone, tmp_path):
    before = (clone / "params.yaml").read_text()
    edit(clone, lambda params: params["train"]["resnet"]["sizes"].update(width=2000))  # terabytes
    edit(clone, lambda params: params["train"]["lenet5"].update(epochs=1))
    offset = (clone / "data/journal.jsonl").stat().st_size if (clone / "data/journal.jsonl").exists() else 0
    env = environment() | {"PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows", "run"]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    (clone / "params.yaml").write_text(before)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "train@resnet needs about" in said
    assert "It would fit with width:" in said
    entries = [json.loads(line) for line in (clone / "data/journal.jsonl").read_text()[offset:].splitlines()]
    ended = [(entry["stage"], entry["status"]) for entry in entries]
    assert ended.count(("train@resnet", 2)) == 1  # and not tried again
    assert ("evaluate@lenet5", 0) in ended
