"""Registers the best model of a data set with MLflow and, if it is better, makes it champion."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy import kinds, params
from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.errors import InputRefusedError
from convoy.files import read_json, read_sealed
from convoy.model import scores
from convoy.tracking import registry, runs
from stages.register import card, comparison, gate, packaging
from stages.register.entry import Register


def register(dataset: str, entry: Register) -> None:
    """Reads every evaluation of ``dataset``; writes data/register/<dataset>: decision.json, comparison.html.

    The best is the model of the highest main metric on the validation split (then the lowest validation loss), so
    that its test score stays an honest figure. It becomes a new version of the registered model ``dataset`` unless it
    is one already; first the stored copy, which takes raw examples, is loaded in a fresh process and has to answer
    some of the test split as evaluate saw; see ``packaging.store``. The alias ``champion`` goes to it if it beats the
    champion on the present test split, by more than chance explains; see ``gate.decide``.

    Args:
        dataset: a name in ingest.
        entry: its entry of params.yaml.

    Raises:
        InputRefusedError: no model of this data set was evaluated.
        IntegrityError: the stored copy does not repeat the predictions.
    """
    challenger = _read_best(dataset)
    version, tags = _store(challenger)
    decision = _decide(challenger, version, entry)
    text = card.card(
        challenger.model, version.version, challenger.about, challenger.takes, challenger.facts, challenger.metrics,
        version.tags | tags, decision.reason, challenger.evaluated,
    )  # fmt: skip
    registry.describe(dataset, card.data(challenger.about), version, text)
    _write(challenger, version, decision)
    print(f"{'champion' if decision.promote else 'not champion'}: {decision.reason}")


@dataclass(frozen=True, slots=True)
class Challenger:
    """The best model of a data set, and what its stages wrote about it.

    Attributes:
        dataset: the data set.
        model: an entry of train.
        metrics: its metrics.json.
        facts: its run.json.
        takes: its input.json.
        about: about.json of the data set.
        test: the test split.
        predictions: its predictions.parquet.
        sha256: of its model.keras.
    """

    dataset: str
    model: str
    metrics: dict[str, Any]
    facts: dict[str, Any]
    takes: dict[str, Any]
    about: dict[str, Any]
    test: Shards
    predictions: pd.DataFrame
    sha256: str

    @property
    def trained(self) -> Path:
        """The folder of train."""
        return Path("data/train", self.dataset, self.model)

    @property
    def evaluated(self) -> Path:
        """The folder of evaluate."""
        return Path("data/evaluate", self.dataset, self.model)

    @property
    def kind(self) -> kinds.Kind:
        """The kind of its examples."""
        return kinds.get(self.about["kind"])

    @property
    def expected(self) -> np.ndarray:
        """What would have been right for each test example; objects of shape (n,)."""
        return self.predictions[self.kind.truth].to_numpy(object)


def _read_best(dataset: str) -> Challenger:
    model, metrics = best(dataset)
    trained, ingested = Path("data/train", dataset, model), Path("data/ingest", dataset)
    return Challenger(
        dataset=dataset,
        model=model,
        metrics=metrics,
        facts=read_json(trained / "run.json"),
        takes=read_json(trained / "input.json"),
        about=read_sealed(ingested / "about.json"),
        test=Shards(ingested / "test"),
        predictions=pd.read_parquet(Path("data/evaluate", dataset, model, "predictions.parquet")),
        sha256=sha256(trained / "model.keras"),
    )


def _store(challenger: Challenger) -> tuple[registry.ModelVersion, dict[str, str]]:
    """Returns the version of a model, and its tags; a model that is none yet, or lost its files, is stored."""
    dataset, model, facts = challenger.dataset, challenger.model, challenger.facts
    lineage = packaging.recorded(dataset, model)
    tags = _tags(challenger, lineage)
    version = registry.version_with(dataset, "model_sha256", challenger.sha256)
    if version is not None and "rolled_back" in version.tags:
        tags["rolled_back"] = version.tags["rolled_back"]  # stored again, it stays taken back
    if version is not None and not registry.is_whole(version):
        print(f"the files of version {version.version} of {dataset} are gone or were changed: {model} is stored again")
        version = None
    if version is not None and "parity" in version.tags:  # without it, of an older convoy, it takes no raw examples
        registry.describe_version(version, tags)  # the test split may be another than at its registration
        print(f"{model} is version {version.version} of {dataset} already; not registered again")
        return version, tags
    with runs.reopened(facts) as run_id:
        address, found = packaging.store(
            dataset, model, facts, challenger.metrics, challenger.predictions, challenger.takes, lineage
        )
    tags |= found
    version = registry.add_version(dataset, address, run_id, tags)
    print(f"registered {dataset} version {version.version}: {model}")
    return version, tags


def _tags(challenger: Challenger, lineage: dict[str, Any]) -> dict[str, str]:
    """Returns what a version says of its model, its data and its scores."""
    return {
        "model": challenger.model,
        "model_sha256": challenger.sha256,
        "test_sha256": sha256(challenger.test.folder / INDEX),
        "classes": json.dumps(challenger.about["classes"]),
        "kind": challenger.kind.name,
        **{f"evaluation.{key}": str(value) for key, value in challenger.metrics.items()},
        **{f"library.{name}": number for name, number in challenger.facts["libraries"].items()},
        **dependencies(lineage, f"train@{challenger.model}"),
    }


def _decide(challenger: Challenger, version: registry.ModelVersion, entry: Register) -> gate.Decision:
    """Decides whether a version becomes champion, notes why in its tags, and promotes it if so."""
    holder = registry.champion(challenger.dataset)
    if holder is not None and holder.version == version.version:
        return gate.Decision(True, json.loads(holder.tags.get("decision", '"already champion"')))
    if "rolled_back" in version.tags:
        return gate.Decision(False, f"version {version.version} was taken back: {version.tags['rolled_back']}")
    if holder is not None and holder.tags.get("model_sha256") == challenger.sha256:
        decision = gate.Decision(True, f"the model of version {holder.version}, stored again")
    elif holder is not None and not registry.is_ours(holder):
        decision = gate.Decision(False, f"nothing was compared: {registry.foreign(holder)}")
    else:
        decision = _compare(challenger, version, holder, entry)
    computed = {"p": decision.p, "power": decision.power}
    numbers = {f"decision.{key}": f"{value:.4g}" for key, value in computed.items() if value is not None}
    registry.describe_version(version, {"decision": json.dumps(decision.reason)} | numbers)
    if decision.promote:
        registry.promote(version)
    return decision


def _compare(
    challenger: Challenger, version: registry.ModelVersion, holder: registry.ModelVersion | None, entry: Register
) -> gate.Decision:
    """Compares a model with the champion, if there is one, and with the limits of its entry."""
    kind, expected = challenger.kind, challenger.expected
    decision = gate.decide(
        answered(kind.metric, expected, challenger.predictions["predicted"].to_numpy(object)),
        None if holder is None else champions(holder, challenger.test, kind, expected),
        expected,
        metric=kind.metric,
        baseline=challenger.metrics["baseline"],
        slices=slices(challenger.predictions),
        min_gain=entry.min_gain,
        alpha=entry.alpha,
        max_slice_loss=entry.max_slice_loss,
        alone="the first champion" if holder is None else f"version {holder.version} cannot read such examples",
    )
    return gate.limited(
        decision,
        {
            "max_latency": (float(version.tags["latency.p95_ms"]), entry.max_latency),
            "max_size": ((challenger.trained / "model.keras").stat().st_size / 1e6, entry.max_size),
            "max_ece": (challenger.metrics.get("ece_scaled"), entry.max_ece),
        },
    )


def _write(challenger: Challenger, version: registry.ModelVersion, decision: gate.Decision) -> None:
    """Writes data/register/<dataset>, and sends a copy to the run of the model."""
    holder = registry.champion(challenger.dataset)
    outcome = {
        "dataset": challenger.dataset,
        "model": challenger.model,
        "version": int(version.version),
        "promoted": decision.promote,
        "reason": decision.reason,
        "p": decision.p,
        "power": decision.power,
        "slices": decision.slices,
        "champion": None if holder is None else {"version": int(holder.version), "model": _named(holder)},
    }
    target = Path("data/register", challenger.dataset)
    target.mkdir(parents=True, exist_ok=True)
    (target / "decision.json").write_text(json.dumps(outcome, indent=1))
    comparison.write(target, outcome, None if holder is None else holder.tags.get("model_sha256"))
    with runs.reopened(challenger.facts):
        runs.log_files(target)


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


def answered(metric: str, expected: np.ndarray, answers: np.ndarray) -> gate.Answers:
    """Returns how the ``answers`` score; both are names of classes or texts, objects of shape (n,)."""
    found = scores.of_examples(metric, expected, answers)
    share = found if metric == "accuracy" else found / 100
    return gate.Answers(scores.main(metric, expected, answers), share, answers)


def slices(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns the parts of the test examples on which a challenger may not fall behind; evaluate's ``slices.py``."""
    return {
        f"{column.removeprefix(scores.PART)} {value}": (values == value).to_numpy()
        for column, values in predictions.items()
        if column.startswith(scores.PART)
        for value in values.unique()
    }


def champions(
    holder: registry.ModelVersion, test: Shards, kind: kinds.Kind, expected: np.ndarray
) -> gate.Answers | None:
    """Returns how a registered version does on ``test``; None: it cannot read these examples.

    It may have been trained on other classes: its answers are compared by name.
    """
    from convoy.model import backend  # imports Keras, which is seldom needed and takes seconds
    from convoy.model.predictor import Predictor

    backend.prepare()
    network, takes = registry.load_model(holder)
    if takes is None or takes["kind"] != kind.name:
        return None
    predictor = Predictor(network, takes)
    return answered(kind.metric, expected, predictor.answers(test)) if predictor.reads(test) else None


def dependencies(lineage: dict[str, Any], stage: str) -> dict[str, str]:
    """Returns what DVC recorded ``stage`` with: ``dvc.<path>`` -> hash, ``params.<key>`` -> value as JSON."""
    entry = lineage["lock"]["stages"].get(stage, {})
    hashes = {f"dvc.{dep['path']}": dep["md5"] for dep in entry.get("deps", [])}
    settings = {key: json.dumps(value) for key, value in entry.get("params", {}).get("params.yaml", {}).items()}
    return hashes | {f"params.{key}": value for key, value in settings.items()}
