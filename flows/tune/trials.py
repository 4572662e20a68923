"""A trial: a training with other values, in a process and a small checkout of its own.

The checkout, ``data/tune/<model>/trials/<number>``, has params.yaml with the trial's values, and links to the training
and validation examples. It has no test split, and nothing of DVC's.
"""

import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from convoy import CODE, params
from convoy.machine import guard
from flows.run import devices
from flows.run.runner import LAST_LINES, find_errors
from stages.search_space import Search
from stages.train.train import ROW

DATA = ("train", "val", "about.json", "key.json")  # of data/ingest/<dataset>: what a trial and its augmentation read


@dataclass
class TrialOutcome:
    """The end of a trial.

    Attributes:
        status: of its process; None: the search ended before it did.
        rows: of the history.
        pruned: it was ended early.
        kept: the epoch that counts, 0 unless it came to its end.
        parameters: of its model.
        reason: its error.
    """

    status: int | None = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    pruned: bool = False
    kept: int = 0
    parameters: int = 0
    reason: str = ""


class TrialRunner:
    """Runs the trials of a search.

    Args:
        search: the search.
        folder: its place.
        slots: devices of the trials.
    """

    def __init__(self, search: Search, folder: Path, slots: Sequence[devices.Slot]) -> None:
        self._search, self._folder, self._slots = search, folder / "trials", devices.Slots(slots)
        self.ended = guard.Ended()
        self.remove()
        self._folder.mkdir(parents=True)
        self._params = self._folder / params.PARAMS  # as it is now, whatever becomes of it meanwhile
        shutil.copy(params.PARAMS, self._params)

    @property
    def at_once(self) -> int:
        """How many trials can run at once."""
        return max(1, len(self._slots.all) // self._search.train["devices"])

    def remove(self) -> None:
        """Removes the checkouts of all trials."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self, number: int, values: Mapping[str, Any], is_hopeless: Callable[[dict[str, float]], bool]
    ) -> TrialOutcome:
        """Augments, if the search changes that, waits for a device, and trains.

        Args:
            number: of the trial.
            values: its hyperparameters.
            is_hopeless: receives each row of the history; ends the trial by returning True.
        """
        with self._checkout(number, values) as folder:
            if self._search.augments:
                with self._start(folder, "augment", self._search.dataset) as process:
                    last = deque(process.stdout, maxlen=LAST_LINES)
                if process.returncode:
                    return self._fail(TrialOutcome(), process.returncode, last)
            with self._slots.lease(self._search.train["devices"], self.ended, lambda: None) as lease:
                if lease is None:
                    return TrialOutcome(None)
                print(f"trial {number}, on {lease.name}: {_list(values)}", flush=True)
                return self._train(folder, lease, is_hopeless)

    def _train(
        self, folder: Path, lease: devices.Lease, is_hopeless: Callable[[dict[str, float]], bool]
    ) -> TrialOutcome:
        outcome, last = TrialOutcome(), deque(maxlen=LAST_LINES)
        with self._start(folder, "trial", self._search.model, lease) as process:
            for line in process.stdout:
                if not line.startswith(ROW):
                    last.append(line)
                    continue
                row = json.loads(line.removeprefix(ROW))
                if "kept" in row:
                    outcome.kept, outcome.parameters = row["kept"], row["parameters"]
                    continue
                outcome.rows.append(row)
                if is_hopeless(row):
                    outcome.pruned = True
                    return outcome
        return outcome if process.returncode == 0 else self._fail(outcome, process.returncode, last)

    def _fail(self, outcome: TrialOutcome, status: int, last: Sequence[str]) -> TrialOutcome:
        errors = find_errors(last)
        reason = (errors or [*last] or ["it said nothing"])[-1].removeprefix("error: ").strip()
        outcome.status = None if self.ended.is_set() else status
        outcome.reason = f"killed by signal {status - 128}" if status > 128 and not errors else reason
        return outcome

    @contextmanager
    def _checkout(self, number: int, values: Mapping[str, Any]) -> Iterator[Path]:
        """Gives a folder in which stages see the values of a trial, and of the data what they may see."""
        folder, dataset = self._folder / f"{number:04}", self._search.dataset
        changes, place = self._search.changes(values), ("train", self._search.model, "word_vectors")
        if vectors := changes.get(place, self._search.train["word_vectors"]):  # a path from the checkout
            changes |= {place: str(Path(vectors).resolve())}
        try:
            (folder / "data/ingest" / dataset).mkdir(parents=True)
            for name in DATA:
                (folder / "data/ingest" / dataset / name).symlink_to(Path("data/ingest", dataset, name).resolve())
            (folder / "data/augment").mkdir()
            if not self._search.augments:
                (folder / "data/augment" / dataset).symlink_to(Path("data/augment", dataset).resolve())
            params.write(changes, self._params, folder / params.PARAMS)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _start(self, folder: Path, command: str, name: str, lease: devices.Lease | None = None) -> Iterator[Popen[str]]:
        """Runs a command of ``stages`` in a folder; gives its guard, whose output is that of the command."""
        path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
        environment = guard.environment() | {"PYTHONPATH": path} | (lease.environment if lease else {})
        process = guard.start(
            [sys.executable, "-m", "stages", command, name],
            env=environment, cwd=str(folder), holding=lease.locks if lease else (),
        )  # fmt: skip
        with self.ended.over(process):
            yield process


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())
