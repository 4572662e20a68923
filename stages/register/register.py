"""Registers the best model of a data set with MLflow and, if it is better, makes it champion."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy import params
from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.errors import InputRefusedError
from convoy.files import read_json, read_sealed
from convoy.model import scores
from convoy.params import Above, Amount, Part
from convoy.tracking import registry, runs
from stages.register import card, comparison, gate, packaging


def register(
    dataset: str,
    *,
    min_gain: Amount = 0.0,
    alpha: Part = 0.05,
    max_slice_loss: Amount = 0.1,
    max_latency: Above | None = None,
    max_size: Above | None = None,
    max_ece: Above | None = None,
) -> None:
    """Reads every evaluation of ``dataset``; writes data/register/<dataset>: decision.json, comparison.html.

    The best is the model of the highest main metric on the validation split (then the lowest validation loss), so
    that its test score stays an honest figure. It becomes a new version of the registered model ``dataset`` unless it
    is one already; first the stored copy, which takes raw examples, is loaded in a fresh process and has to answer
    some of the test split as evaluate saw; see ``packaging.store``. The alias ``champion`` goes to it if it beats the
    champion on the present test split, by more than chance explains; see ``gate.decide``.

    Args:
        dataset: a name in ingest.
        min_gain: by which a challenger has to exceed the champion, in the main metric: a share for accuracy, points of
            100 for BLEU.
        alpha: largest probability of promoting a challenger that was only lucky.
        max_slice_loss: by which it may be worse on a class, a size or a source of the test examples, in accuracy; of
            sentence pairs in chrF of 1. A loss that chance explains does not count.
        max_latency: of a champion, in milliseconds: within it 95 % of single raw examples have to be answered, on the
            machine that registers. None of the limits is set by default.
        max_size: of a champion's model.keras, in megabytes.
        max_ece: of a champion's expected calibration error on the test split, as served.

    Raises:
        InputRefusedError: no model of this data set was evaluated.
        IntegrityError: the stored copy does not repeat the predictions.
    """
    model, metrics = best(dataset)
    trained, evaluated = Path("data/train", dataset, model), Path("data/evaluate", dataset, model)
    facts, takes = read_json(trained / "run.json"), read_json(trained / "input.json")
    lineage = packaging.recorded(dataset, model)
    about = read_sealed(Path("data/ingest", dataset, "about.json"))
    kind, classes = about["kind"], about["classes"]
    test = Shards(Path("data/ingest", dataset, "test"))
    predictions = pd.read_parquet(evaluated / "predictions.parquet")
    digest = sha256(trained / "model.keras")

    tags = {
        "model": model,
        "model_sha256": digest,
        "test_sha256": sha256(test.folder / INDEX),
        "classes": json.dumps(classes),
        "kind": kind,
        **{f"evaluation.{key}": str(value) for key, value in metrics.items()},
        **{f"library.{name}": number for name, number in facts["libraries"].items()},
        **dependencies(lineage, f"train@{model}"),
    }
    version = registry.version_with(dataset, "model_sha256", digest)
    if version is not None and "rolled_back" in version.tags:
        tags["rolled_back"] = version.tags["rolled_back"]  # stored again, it stays taken back
    if version is not None and not registry.is_whole(version):
        print(f"the files of version {version.version} of {dataset} are gone or were changed: {model} is stored again")
        version = None
    if version is None or "parity" not in version.tags:  # of an older convoy, it takes no raw examples
        with runs.reopened(facts) as run_id:
            address, found = packaging.store(dataset, model, facts, metrics, predictions, takes, lineage)
        tags |= found
        version = registry.add_version(dataset, address, run_id, tags)
        print(f"registered {dataset} version {version.version}: {model}")
    else:
        registry.describe_version(version, tags)  # the test split may be another than at its registration
        print(f"{model} is version {version.version} of {dataset} already; not registered again")

    holder = registry.champion(dataset)
    if holder is not None and holder.version == version.version:
        decision = gate.Decision(True, json.loads(holder.tags.get("decision", '"already champion"')))
    elif "rolled_back" in version.tags:
        decision = gate.Decision(False, f"version {version.version} was taken back: {version.tags['rolled_back']}")
    elif holder is not None and holder.tags.get("model_sha256") == digest:
        decision = gate.Decision(True, f"the model of version {holder.version}, stored again")
        registry.describe_version(version, {"decision": json.dumps(decision.reason)})
        registry.promote(version)
    elif holder is not None and not registry.is_ours(holder):
        decision = gate.Decision(False, f"nothing was compared: {registry.foreign(holder)}")
        registry.describe_version(version, {"decision": json.dumps(decision.reason)})
    else:
        expected = predictions[scores.TRUTHS[kind]].to_numpy(object)
        decision = gate.decide(
            answered(kind, expected, predictions["predicted"].to_numpy(object)),
            None if holder is None else champions(holder, test, kind, expected),
            expected,
            kind=kind,
            baseline=metrics["baseline"],
            slices=slices(predictions),
            min_gain=min_gain,
            alpha=alpha,
            max_slice_loss=max_slice_loss,
            alone="the first champion" if holder is None else f"version {holder.version} cannot read such examples",
        )
        decision = gate.limited(
            decision,
            {
                "max_latency": (float(version.tags["latency.p95_ms"]), max_latency),
                "max_size": ((trained / "model.keras").stat().st_size / 1e6, max_size),
                "max_ece": (metrics.get("ece_scaled"), max_ece),
            },
        )
        numbers = {f"decision.{key}": f"{getattr(decision, key):.4g}" for key in ("p", "power")
                   if getattr(decision, key) is not None}  # fmt: skip
        registry.describe_version(version, {"decision": json.dumps(decision.reason)} | numbers)
        if decision.promote:
            registry.promote(version)
    text = card.card(
        model, version.version, about, takes, facts, metrics, version.tags | tags, decision.reason, evaluated
    )
    registry.describe(dataset, card.data(about), version, text)
    holder = registry.champion(dataset)
    outcome = {
        "dataset": dataset,
        "model": model,
        "version": int(version.version),
        "promoted": decision.promote,
        "reason": decision.reason,
        "p": decision.p,
        "power": decision.power,
        "slices": decision.slices,
        "champion": None if holder is None else {"version": int(holder.version), "model": _named(holder)},
    }
    target = Path("data/register", dataset)
    target.mkdir(parents=True, exist_ok=True)
    (target / "decision.json").write_text(json.dumps(outcome, indent=1))
    comparison.write(target, outcome, None if holder is None else holder.tags.get("model_sha256"))
    with runs.reopened(facts):
        runs.log_files(target)
    print(f"{'champion' if decision.promote else 'not champion'}: {decision.reason}")


def _named(version: registry.ModelVersion) -> str:
    return version.tags["model"] if registry.is_ours(version) else "a model of another tool"


def best(dataset: str) -> tuple[str, dict]:
    """Returns the name and the metrics of the model of ``dataset`` that did best on the validation split.

    Only models that params.yaml lists take part; folders of former ones may still lie there.
    """
    found = {}
    for model in params.models(dataset):
        file = Path("data/evaluate", dataset, model, "metrics.json")
        if file.exists():
            metrics = read_json(file)
            chosen_by = [f"val_{metrics['metric']}", "val_loss"]
            if wrong := [f"{key} = {metrics[key]}" for key in chosen_by if not math.isfinite(metrics[key])]:
                print(f"{model} is left out: it diverged ({', '.join(wrong)})")
                continue
            found[model] = metrics
    if not found:
        raise InputRefusedError(f"no model of {dataset} was evaluated; params.yaml lists {params.models(dataset)}.")
    return max(found.items(), key=lambda item: (item[1][f"val_{item[1]['metric']}"], -item[1]["val_loss"]))


def answered(kind: str, expected: np.ndarray, answers: np.ndarray) -> gate.Answers:
    """Returns how the ``answers`` score; both are names of classes or texts, objects of shape (n,)."""
    found = scores.of_examples(kind, expected, answers)
    share = found if scores.METRICS[kind] == "accuracy" else found / 100
    return gate.Answers(scores.main(kind, expected, answers), share, answers)


def slices(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns the parts of the test examples on which a challenger may not fall behind; of ``evaluate.slices``."""
    return {
        f"{column.removeprefix(scores.PART)} {value}": (values == value).to_numpy()
        for column, values in predictions.items()
        if column.startswith(scores.PART)
        for value in values.unique()
    }


def champions(holder: registry.ModelVersion, test: Shards, kind: str, expected: np.ndarray) -> gate.Answers | None:
    """Returns how a registered version does on ``test``; None: it cannot read these examples.

    It may have been trained on other classes: its answers are compared by name.
    """
    from convoy.model import backend  # imports Keras, which is seldom needed and takes seconds
    from convoy.model.predictor import Predictor

    backend.prepare()
    network, takes = registry.load_model(holder)
    if takes is None or takes["kind"] != kind:
        return None
    predictor = Predictor(network, takes)
    return answered(kind, expected, predictor.answers(test)) if predictor.reads(test) else None


def dependencies(lineage: dict[str, Any], stage: str) -> dict[str, str]:
    """Returns what DVC recorded ``stage`` with: ``dvc.<path>`` -> hash, ``params.<key>`` -> value as JSON."""
    entry = lineage["lock"]["stages"].get(stage, {})
    hashes = {f"dvc.{dep['path']}": dep["md5"] for dep in entry.get("deps", [])}
    settings = {key: json.dumps(value) for key, value in entry.get("params", {}).get("params.yaml", {}).items()}
    return hashes | {f"params.{key}": value for key, value in settings.items()}
