"""Stores a trained model as one that can be served, and accepts the copy only if it answers as evaluate saw."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy import CODE, PACKAGES, dependencies, kinds
from convoy.data.shards import Shards, spread
from convoy.errors import IntegrityError
from convoy.model import safe_load, scores
from convoy.repo import lockfile
from convoy.tracking import registry

TOLERANCE = 1e-3  # of a probability; the same network differs in the last bits of float32, on some devices of TF32
EXAMPLES = 100  # of the test split that the copy is asked
CHAIN = ("fetch", "ingest", "augment", "train", "evaluate")  # of stages, from raw files to a version
LOADER = "stages.register.model"  # the module that MLflow calls
LIBRARIES = (  # that this code imports, beside Keras' backend
    "charset-normalizer", "filelock", "keras", "mlflow", "numpy", "pandas", "pillow", "psutil", "scipy",
    "sentencepiece",
)  # fmt: skip


def store(
    dataset: str,
    model: str,
    facts: dict[str, Any],
    metrics: dict[str, Any],
    predictions: pd.DataFrame,
    takes: dict[str, Any],
    lineage: dict[str, Any],
) -> tuple[str, dict[str, str]]:
    """Stores data/train/<dataset>/<model> with the open MLflow run; see ``model.Servable`` for how it is asked.

    The copy is loaded in a fresh process and asked EXAMPLES raw examples of the test split. What it answers is as
    certain as it is right: classes have the temperature that evaluate fitted.

    Args:
        dataset: the data set.
        model: an entry of train.
        facts: its run.json.
        metrics: its metrics.json.
        predictions: its predictions.parquet.
        takes: its input.json.
        lineage: of ``recorded``.

    Returns:
        Its address, and tags: ``parity`` (what was compared), ``stored_sha256`` (of its files), ``latency.p50_ms`` and
        ``latency.p95_ms``, the milliseconds for one raw example on this machine, without HTTP.

    Raises:
        IntegrityError: it does not load, or answers otherwise.
        InputRefusedError: see ``safe_load.check``.
    """
    safe_load.check(Path("data/train", dataset, model, "model.keras"))  # or nobody could load what is registered
    trained, test = Path("data/train", dataset, model), Shards(Path("data/ingest", dataset, "test"))
    if "temperature" in metrics:
        takes = takes | {"temperature": metrics["temperature"]}
    rows = spread(len(test), EXAMPLES)
    asked, files = raw_examples(dataset, test, rows, predictions["path"], takes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        shutil.copyfile(trained / "model.keras", folder / "model.keras")
        (folder / "input.json").write_text(json.dumps(takes, ensure_ascii=False), encoding="utf-8")
        (folder / "lineage.json").write_text(json.dumps(lineage, indent=1))
        address = registry.log_model(
            model,
            folder,
            LOADER,
            code(Path(scratch)),
            *signature(kinds.get(takes["kind"])),
            example=asked[:1],
            libraries=[*LIBRARIES, facts["backend"]],
        )
    with registry.fetched(address) as copy:
        stored = registry.fingerprint(copy)
        answers, seconds = reload(address, copy, asked)
    compare(address, answers, expected_answers(predictions.iloc[rows], takes))
    tags = {"parity": f"{len(rows)} test examples, {files} of them raw files", registry.STORED: stored}
    tags |= {f"latency.p{part}_ms": f"{np.percentile(seconds, part) * 1000:.2f}" for part in (50, 95)}
    return address, tags


def recorded(dataset: str, model: str) -> dict[str, Any]:
    """Returns what DVC recorded of a model's stages, for ``lineage.json``.

    ``lock``: their entries of dvc.lock; ``names``: kind of stage -> stage; ``files``: .dvc files of raw data.
    """
    names = {kind: f"{kind}@{model if kind in ('train', 'evaluate') else dataset}" for kind in CHAIN}
    raw, stages = Path(f"data/raw/{dataset}.dvc"), lockfile.stages()
    return {
        "names": names,
        "lock": {"schema": "2.0", "stages": {name: stages[name] for name in names.values() if name in stages}},
        "files": {raw.as_posix(): raw.read_text()} if raw.exists() else {},
    }


def raw_examples(
    dataset: str, test: Shards, rows: np.ndarray, paths: pd.Series, takes: dict[str, Any]
) -> tuple[pd.DataFrame, int]:
    """Returns test examples as a user would send them, and how many of them are files of the raw data.

    What is a part of a larger file there - of a table, an archive, an array - is sent as it is stored, by its kind.
    """
    kind, sent, files = kinds.get(takes["kind"]), [], 0
    for row, stored in zip(rows, test.take(takes.get("array", kind.column), rows), strict=True):
        file = Path("data/raw", dataset, paths[row])
        if not kind.is_text and file.is_file():
            sent.append(file.read_bytes())
            files += 1
        else:
            sent.append(kind.pack(stored))
    return pd.DataFrame({kind.column: sent}), files


def code(scratch: Path) -> list[Path]:
    """Copies what the servable model runs, and no more; returns the packages."""
    for file in {dependencies.file(module) for module in dependencies.of([LOADER], neutral=True)}:
        for one in (file, *(folder / "__init__.py" for folder in file.parents if folder.name)):
            (scratch / one).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CODE / one, scratch / one)
    return [scratch / package for package in PACKAGES if (scratch / package).exists()]


def signature(kind: kinds.Kind) -> tuple[dict[str, str], dict[str, str]]:
    """Returns column -> type of what the servable model takes and answers; see ``model.Servable.predict``."""
    return {kind.column: kind.sent}, kind.answers


def reload(address: str, copy: Path, asked: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Loads a stored model in a fresh process, outside of the checkout, and asks it.

    Args:
        address: of the model, for messages.
        copy: its files, as the store gave them.
        asked: raw examples.

    Returns:
        Its answers, and the seconds that it took for each of some examples that were asked one by one.

    Raises:
        IntegrityError: the process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked.to_parquet(Path(scratch, "asked.parquet"))
        done = subprocess.run(
            [sys.executable, "-P", Path(__file__).with_name("parity.py").resolve(), copy],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise IntegrityError(f"{address} does not load in a fresh process: {done.stderr.strip()[-2000:]}")
        return pd.read_parquet(Path(scratch, "answered.parquet")), np.load(Path(scratch, "seconds.npy"))


def expected_answers(predictions: pd.DataFrame, takes: dict[str, Any]) -> pd.DataFrame:
    """Returns what the servable model has to answer, given rows of predictions.parquet."""
    kind = kinds.get(takes["kind"])
    if not kind.has_classes:
        answers = predictions["predicted"], np.exp(predictions["log_probability"])
        return pd.DataFrame(dict(zip(kind.answers, answers, strict=True)))
    found = scores.scaled(np.stack(predictions["probabilities"]), takes["temperature"])
    return pd.DataFrame({"label": predictions["predicted"], "probability": found.max(axis=1)})


def compare(address: str, found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compares answers, row by row.

    Raises:
        IntegrityError: one differs, or a probability by more than TOLERANCE.
    """
    name = expected.columns[0]
    near = len(found) == len(expected) and np.allclose(
        found["probability"], expected["probability"], rtol=0, atol=TOLERANCE
    )
    if not near or (found[name].to_numpy() != expected[name].to_numpy()).any():
        raise IntegrityError(f"{address}, loaded in a fresh process, answers otherwise than evaluate saw.")
