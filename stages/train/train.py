"""Trains one model: data/augment/<dataset> and data/ingest/<dataset>/val -> data/train/<dataset>/<model>.

This file imports no Keras, so that the schema of ``train`` can be read without seconds of start-up.
"""

import ast
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stages import tracking
from stages.checksums import sha256
from stages.errors import ConfigurationError
from stages.params import Amount, Positive, Seed, Share
from stages.shards import INDEX, Shards, read_sealed

ARCHITECTURES = Path(__file__).parent / "architectures"


def train(
    model: str,
    *,
    dataset: str,
    architecture: str,
    epochs: Positive,
    learning_rate: Amount,
    sizes: dict[str, Any] = {},  # noqa: B006 - read only; the signature is the schema of params.yaml
    batch: Positive = 128,
    optimizer: Literal["sgd", "adam", "adamw"] = "adam",
    momentum: Share = 0.9,
    weight_decay: Amount = 0.0,
    schedule: Literal["constant", "step", "cosine"] = "cosine",
    warmup: Amount = 0.0,
    milestones: list[Share] = [0.5, 0.75],  # noqa: B006
    label_smoothing: Share = 0.0,
    class_weights: bool = False,
    patience: Positive | None = None,
    devices: Positive = 1,
    seed: Seed = 0,
) -> None:
    """Trains ``architecture`` on the augmented training split; writes data/train/<dataset>/<model>.

    ``model.keras`` (one input, one output, no optimizer; loads without our code), ``history.csv`` (per epoch), and
    ``run.json`` (the MLflow run, sizes and seconds). Equal entries, data, code and machine give an equal model.

    Args:
        model: name of the entry in params.yaml.
        dataset: an entry of ingest.
        architecture: a file of ``architectures/``.
        epochs: passes over the augmented training split.
        learning_rate: the largest of the schedule, per step.
        sizes: arguments of the architecture's ``build``, without input_shape, classes and heads.
        batch: examples per step.
        optimizer: sgd has ``momentum`` (Nesterov's), adam and adamw have their papers' constants.
        momentum: of sgd.
        weight_decay: share of each kernel taken off per step, times the learning rate; biases and normalisation
            are exempt (Loshchilov and Hutter 2017, arXiv:1711.05101).
        schedule: ``constant``; ``step`` divides by 10 at ``milestones``; ``cosine`` falls to 0 at the end.
        warmup: epochs over which the rate of the cosine schedule first rises from 0.
        milestones: shares of the whole training, for ``step``.
        label_smoothing: share of the target probability that is spread over all classes.
        class_weights: weigh every class equally, however many examples it has.
        patience: stop after so many epochs without a lower validation loss, and keep the best weights; by default
            train to the end and keep the last.
        devices: that the model is trained on, each with its share of every batch.
        seed: of the first weights, the order of examples and dropout.

    Raises:
        ConfigurationError: the architecture does not exist or refuses its sizes; or there are not so many devices.
        DivergedError: the loss is no longer a finite number.
    """
    check_sizes(f"params.yaml, train.{model}", architecture, sizes)
    arguments = {key: value for key, value in locals().items() if key not in ("model", "dataset")}
    source, target = Path("data/augment", dataset), Path("data/train", dataset, model)
    classes = read_sealed(source / "about.json")["classes"]
    data, val = Shards(source / "train"), Shards(Path("data/ingest", dataset, "val"))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)

    code = [*Path(__file__).parent.glob("*.py"), ARCHITECTURES / f"{architecture}.py"]
    code += [Path(__file__).parent.parent / file for file in ("compute.py", "shards.py")]
    inputs = {str(path): sha256(path) for path in (source / "train" / INDEX, val.folder / INDEX)}
    inputs |= {str(path.relative_to(Path(__file__).parents[2])): sha256(path) for path in sorted(code)}
    with tracking.run(f"train@{model}", dataset, arguments, inputs) as run_id:
        from stages.train import loop  # here, for the reason in the first lines

        started = time.time()
        result = loop.fit(data, val, len(classes), title=f"train@{model}", log=tracking.log_metrics, **arguments)
        seconds = time.time() - started
        result.history.to_csv(target / "history.csv", index=False)
        loop.save(result.model, target / "model.keras")
        facts = {
            "model": model,
            "dataset": dataset,
            "architecture": architecture,
            "run_id": run_id,
            "parameters": result.parameters,
            "epochs": len(result.history),
            "images_per_second": round(result.images_per_second),
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **loop.environment(),
        }
        tracking.log_facts(facts)
    (target / "run.json").write_text(json.dumps(facts, indent=1))


def check_sizes(where: str, architecture: str, sizes: dict[str, Any]) -> None:
    """Compares ``sizes`` with the signature of the architecture's ``build``, without importing it.

    Raises:
        ConfigurationError: there is no such file, or ``build`` has no such argument.
    """
    names = sorted(path.stem for path in ARCHITECTURES.glob("[!_]*.py"))
    if architecture not in names:
        raise ConfigurationError(f"{where}: unknown architecture {architecture!r}. Architectures: {', '.join(names)}.")
    file = ARCHITECTURES / f"{architecture}.py"
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        raise ConfigurationError(f"{where}: {file}, line {error.lineno}: {error.msg}") from error
    build = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"), None)
    if build is None:
        raise ConfigurationError(f"{where}: {file} has no function build(input_shape, classes, ...).")
    allowed = [a.arg for a in build.args.args if a.arg not in ("input_shape", "classes", "heads")]
    if unknown := sorted(set(sizes) - set(allowed)):
        raise ConfigurationError(
            f"{where}: {architecture} has no size {', '.join(unknown)}. Sizes: {', '.join(allowed)}."
        )
