"""Trains one model: data/augment/<dataset> and data/ingest/<dataset>/val -> data/train/<dataset>/<model>.

Keras is imported within the functions: who asks for ``code`` has no use for its seconds of start-up.
"""

import json
import math
import shutil
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from convoy import dependencies
from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.machine import room
from convoy.tracking import outbox
from stages.train.entry import Train
from stages.train.fit.input_spec import open_inputs

if TYPE_CHECKING:
    from stages.train.running.checkpoints import Checkpoints, State

ROW = "trial: "  # begins what a trial says of an epoch


def train(model: str, entry: Train) -> None:
    """Trains a model on the augmented training split; writes data/train/<dataset>/<model>.

    ``model.keras`` (no optimizer; loads without our code), ``input.json`` (the input spec: how a picture comes to its
    size, a text to tokens; what the answers mean), ``history.csv`` (per epoch), and ``run.json`` (the MLflow run, the
    size of the model, how it computed). On a CPU equal entries, data, code, policy (``policy.py``) and machine give
    equal files, also after a kill. What it took, which differs each time, is in ``outbox.measured``.

    Args:
        model: name of the entry in params.yaml.
        entry: the entry.

    Raises:
        ConfigurationError: the architecture does not exist, is for another kind of data or refuses its sizes; a key
            says nothing about this data; there are not so many devices; or not so much memory, in all.
        ServiceError: others have the memory that it needs, or it ended.
        DivergedError: the loss is no longer a finite number.
    """
    target, title = Path("data/train", entry.dataset, model), f"train@{model}"
    data, val, input_spec = open_inputs(model, entry)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)

    from convoy.model import backend  # first of all: it imports Keras quietly
    from stages.train.fit import export, fit
    from stages.train.speed import cost, policy

    read = _read(entry, data, val)
    checkpoints, state = _checkpoints(model, entry, read)
    former = state.facts if state else {"seconds": 0.0}
    arguments = entry.model_dump(exclude={"dataset"})
    with outbox.run(checkpoints.key, title, entry.dataset, arguments, read, anew=state is None) as run:
        for context, split in (("training", data), ("validation", val)):
            run.data(context, entry.dataset, split.folder, read[str(split.folder / INDEX)])
        started = time.time() - former["seconds"]
        # What was chosen when the training began computes the rest of it too.
        settled = entry.model_copy(update=former.get("policy", {}))
        chosen, source, needs = policy.choose_checked(model, title, data, input_spec, settled)
        source = former.get("source", source)
        print(f"{title}  {needs}\n{title}  computes in {policy.describe(chosen)} ({source})", flush=True)
        kept = {"policy": asdict(chosen), "source": source}
        checkpoints.facts = lambda: kept | {"seconds": time.time() - started}
        with cost.guarded(needs, title):
            result = fit.fit(
                data, val, input_spec, entry, chosen, title=title, log=run.metrics, checkpoints=checkpoints, state=state
            )
            seconds = time.time() - started
            export.save(result.model, target / "model.keras")
        result.history.to_csv(target / "history.csv", index=False)
        (target / "input.json").write_text(json.dumps(input_spec, ensure_ascii=False), encoding="utf-8")
        about = {"model": model, "dataset": entry.dataset, "architecture": entry.architecture, "record_id": run.id}
        size = {"parameters": result.parameters, "flops": needs.flops, "epochs": len(result.history)}
        facts = about | size | asdict(chosen) | {"policy": source} | export.environment()
        measured = {
            "examples_per_second": round(result.examples_per_second),
            "validation_examples_per_second": round(result.validation_examples_per_second),
            "memory": round(room.peak() / 2**20),  # MiB
            **({"device_memory": round(most / 2**20)} if (most := backend.peak_memory()) else {}),  # MiB of a GPU
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        run.facts(facts | measured)
    outbox.keep(facts, measured)
    (target / "run.json").write_text(json.dumps(facts, indent=1))
    checkpoints.remove()


def trial(model: str, entry: Train) -> None:
    """Trains as ``train`` does, and keeps nothing but what it says: lines of ROW and JSON.

    One for each epoch has a row of the history and the speed; the last one the number of ``parameters``, and as
    ``kept`` the epoch whose weights ``train`` would keep.
    """
    data, val, input_spec = open_inputs(model, entry)
    from stages.train.fit import fit
    from stages.train.speed import cost, policy

    def say(row: dict[str, float], _epoch: int = 0) -> None:
        print(ROW + json.dumps(row), flush=True)

    title = f"trial@{model}"
    chosen, _, needs = policy.choose_checked(model, title, data, input_spec, entry, worth=math.inf)
    with cost.guarded(needs, title):
        result = fit.fit(data, val, input_spec, entry, chosen, title=title, log=say)
    losses = result.history["val_loss"]
    kept = len(losses) if entry.patience is None else int(losses.argmin()) + 1
    say({"kept": kept, "parameters": result.parameters})


def code(architecture: str) -> dict[str, str]:
    """Returns the files of this checkout that decide what a training yields: path -> SHA-256."""
    return dependencies.checksums(dependencies.stage("train", architecture))


def _read(entry: Train, data: Shards, val: Shards) -> dict[str, str]:
    """Returns the files that the model depends on, beside its entry: path -> SHA-256."""
    read = {str(path): sha256(path) for path in (data.folder / INDEX, val.folder / INDEX)} | code(entry.architecture)
    if entry.word_vectors is not None and entry.word_vectors.is_file():
        read["word_vectors"] = sha256(entry.word_vectors)
    return read


def _checkpoints(model: str, entry: Train, read: dict[str, str]) -> "tuple[Checkpoints, State | None]":
    """Returns the checkpoints of a training, and the last one if there is one."""
    from stages.train.fit import export
    from stages.train.running.checkpoints import Checkpoints

    depends = {"dataset": entry.dataset, "arguments": entry.model_dump(exclude={"dataset"}), "read": read}
    checkpoints = Checkpoints(entry.dataset, model, depends | {"libraries": export.libraries(), "model": model})
    state = checkpoints.newest()
    if state:
        print(f"resuming train@{model} from epoch {state.epochs + 1}", flush=True)
    return checkpoints, state
