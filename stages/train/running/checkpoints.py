"""Checkpoints: a training that was killed goes on from the last one, and ends as if nothing had been.

``data/train/.cache/checkpoints/<dataset>/<model>/<key>/<epochs>-<digest>.npz``: outside of DVC's outputs, which DVC
deletes before it runs a stage. A checkpoint is one file, which is written under another name, synced to the disk and
then renamed: it is whole or not there. Its name has the SHA-256 of its bytes, and the last two are kept, so that a
damaged one is noticed and the one before is there. The key is of all that the result depends on.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convoy.checksums import sha256

FOLDER = Path("data/train/.cache/checkpoints")
KEPT = 2
SHARE = 0.02  # of the time of a training, at most, for checkpoints


@dataclass(frozen=True)
class State:
    """What a training is after some epochs.

    Attributes:
        epochs: that are done.
        rows: of the history so far.
        facts: JSON of who keeps it: what was chosen when the training began.
        weights: of the model.
        optimizer: its variables: momentum, averages of weights, steps done, on which the learning rate depends.
        stopping: of ``EarlyStopping``: ``wait``, ``best``, ``best_epoch``.
        best: the weights it would go back to; empty where there are none.
    """

    epochs: int
    rows: list[dict[str, float]]
    facts: dict[str, Any]
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    stopping: dict[str, float] = field(default_factory=dict)
    best: list[np.ndarray] = field(default_factory=list)


ARRAYS = ("weights", "optimizer", "best")
FORMAT = 1  # of a checkpoint; with another one, which older checkpoints do not have, a training starts over


class Checkpoints:
    """Those of one training.

    Attributes:
        key: of the training: 32 hexadecimal digits.
        facts: returns JSON that goes with a checkpoint.

    Args:
        dataset: the data set.
        model: the entry in params.yaml.
        depends: all that its result depends on, as JSON.
    """

    def __init__(self, dataset: str, model: str, depends: Mapping[str, Any]) -> None:
        decides = json.dumps({**depends, "format": FORMAT}, sort_keys=True, default=str)
        digest = hashlib.sha256(decides.encode()).hexdigest()
        self.facts: Callable[[], dict[str, Any]] = dict
        self._name, self._place = f"train@{model}", FOLDER / dataset / model
        self.key = digest[:32]
        self._folder = self._place / self.key
        self._seconds, self._began = 0.0, time.monotonic()

    def newest(self) -> State | None:
        """Returns the last whole one; says which are damaged, and removes those of another configuration."""
        others = [other for other in self._place.glob("*") if other != self._folder]
        for other in others:
            shutil.rmtree(other)
        if others:
            print(f"{self._name}  starts over: its checkpoints belong to another configuration", flush=True)
        for epochs, file in self._files():
            if sha256(file).startswith(file.stem.partition("-")[2]):
                return _read(file)
            print(f"{self._name}  the checkpoint of epoch {epochs} is damaged, and not used", flush=True)
            file.unlink()
        return None

    def due(self) -> bool:
        """Whether so much time passed that another one is worth its own."""
        return self._seconds <= SHARE * (time.monotonic() - self._began)

    def save(self, state: State) -> None:
        """Keeps a state beside the one before it."""
        started = time.monotonic()
        content = io.BytesIO()
        about = {key: getattr(state, key) for key in ("epochs", "rows", "facts", "stopping")}
        arrays = {f"{kind}{number}": one for kind in ARRAYS for number, one in enumerate(getattr(state, kind))}
        np.savez(content, said=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        data = content.getbuffer()
        self._folder.mkdir(parents=True, exist_ok=True)
        # Not with files.py: each checkpoint has a name of its own, so kills would leave a partial file of each.
        partial = self._folder / "partial"
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._folder / f"{state.epochs:06d}-{hashlib.sha256(data).hexdigest()[:32]}.npz")
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        for _, file in list(self._files())[KEPT:]:
            file.unlink()
        self._seconds += time.monotonic() - started

    def remove(self) -> None:
        """Removes all of them: the training is done."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Yields epochs and file of each, the last first."""
        for file in sorted(self._folder.glob("*.npz"), reverse=True):
            yield int(file.stem.partition("-")[0]), file


def _read(file: Path) -> State:
    with np.load(file) as content:  # never executes: allow_pickle is False
        said = json.loads(content["said"].tobytes())
        arrays = {
            kind: [content[f"{kind}{number}"] for number in range(sum(name.startswith(kind) for name in content.files))]
            for kind in ARRAYS
        }
    return State(**said, **arrays)
