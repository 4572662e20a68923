import json
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from convoy.tracking import outbox
from flows.show import results

FACTS = {"model": "lenet5", "dataset": "digits", "record_id": "0" * 32}


@pytest.fixture
def finished(workspace):
    """Files as the stages leave them: lenet5 evaluated, resnet not yet; nothing registered."""
    (workspace / "params.yaml").write_text(
        "fetch: {}\naugment: {}\nregister: {}\ningest: {digits: {}}\n"
        "train: {lenet5: {dataset: digits}, resnet: {dataset: digits}}\n"
    )
    for stage, file, content in (
        ("train", "run.json", FACTS),
        ("train", "model.keras", {}),
        (
            "evaluate",
            "metrics.json",
            {
                "metric": "accuracy", "accuracy": 0.9876, "accuracy_low": 0.97, "accuracy_high": 0.993,
                "val_accuracy": 0.98, "parameters": 61706,
            },
        ),
    ):  # fmt: skip
        folder = workspace / "data" / stage / "digits/lenet5"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))
    outbox.keep(FACTS, {"seconds": 12.3})
    return workspace


def journal(workspace, stage, at):
    entry = {"stage": stage, "started": datetime.fromtimestamp(at, UTC).isoformat(), "seconds": 12.3, "status": 0}
    with (workspace / "data/journal.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.mark.slow
def test_the_table_has_a_row_for_every_model_and_says_what_ran(finished, capsys):
    journal(finished, "fetch@digits", 500)
    journal(finished, "train@lenet5", 1500)
    results.show(since=1000)
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "lenet5" in line)
    for word in ("61,706", "98.76%", "97.0% - 99.3%", "98.00%", "12", "ran"):
        assert word in row
    assert "not run" in next(line for line in text.splitlines() if "resnet" in line)
    assert "1 of 5 stages ran, in " in text
    assert "convoy ui" in text


def test_only_the_champion_is_marked(finished, capsys, monkeypatch):
    shutil.copytree(finished / "data/train/digits/lenet5", finished / "data/train/digits/resnet")
    shutil.copytree(finished / "data/evaluate/digits/lenet5", finished / "data/evaluate/digits/resnet")
    (finished / "data/train/digits/resnet/model.keras").write_text("another")
    digest = results.sha256(finished / "data/train/digits/resnet/model.keras")
    holder = SimpleNamespace(version="7", tags={"model_sha256": digest})
    monkeypatch.setattr(results.registry, "champion", lambda dataset: holder)
    results.show(since=None)
    rows = capsys.readouterr().out.splitlines()
    assert [("lenet5" in row, "resnet" in row) for row in rows if "champion, version 7" in row] == [(False, True)]


@pytest.mark.slow
def test_a_registry_without_the_champion_of_the_files_is_a_warning(finished, capsys):
    decision = {"version": 1, "model": "lenet5", "promoted": True, "reason": "better", "champion": {"version": 1}}
    (finished / "data/register/digits").mkdir(parents=True)
    (finished / "data/register/digits/decision.json").write_text(json.dumps(decision))
    results.show(since=None)
    assert "dvc repro --force --single-item register@digits" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_results_name_the_page_of_the_comparison(finished, capsys):
    decision = {"version": 1, "model": "lenet5", "promoted": True, "reason": "better", "champion": None}
    page = finished / "data/register/digits/comparison.html"
    page.parent.mkdir(parents=True)
    (page.parent / "decision.json").write_text(json.dumps(decision))
    page.write_text("")
    results.show(since=None)
    assert "side by side: data/register/digits/comparison.html\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_did_nothing_says_so(finished, capsys):
    journal(finished, "train@lenet5", 500)
    results.show(since=1000)
    text = capsys.readouterr().out
    assert "cached" in text
    assert "Nothing to do: all 5 stages are up to date." in text


@pytest.mark.slow
def test_of_stages_that_nobody_asked_for_nothing_is_told(finished, capsys):
    results.show(since=1000, targets=["train@lenet5", "fetch@digits"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Nothing to do: up to date are train@lenet5, fetch@digits, and what they need." in text
    assert "all 5 stages" not in text
