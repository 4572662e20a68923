"""How fast a training is, by some of its steps."""

import time
from contextlib import suppress
from typing import Any

import keras

from convoy.data.shards import Shards
from stages.train.entry import Policy, Train
from stages.train.fit import fit


class Enough(Exception):  # noqa: N818 - it is no error
    """Ends a training whose speed is known."""


class Pace(keras.callbacks.Callback):
    """Measures how long steps take, validation left out, and ends the training after enough, by raising ``Enough``.

    Args:
        steps: to measure, after the first WARM_UP, which build the graph.

    Attributes:
        start: seconds until then.
        step: seconds of one step after that; None while there were not so many.
    """

    WARM_UP = 6

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.start, self.step = 0.0, None
        self._wanted = steps
        self._done = self._in_epoch = 0  # steps since the last thing that was found, and of this epoch
        self._busy = 0.0  # seconds of those
        self._began = self._at = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._in_epoch, self._at = 0, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        step = min(batch + 1, self.params["steps"])  # the last execution of an epoch may have fewer steps
        self._done, self._in_epoch = self._done + step - self._in_epoch, step
        enough = self._done >= (self._wanted if self.start else self.WARM_UP)
        if not enough and step < self.params["steps"]:
            return
        float(logs["loss"])  # waits for the step
        now = time.perf_counter()
        self._busy, self._at = self._busy + now - self._at, now
        if enough and self.start:
            self.step = self._busy / self._done
            raise Enough
        if enough:
            self.start, self._busy, self._done = now - self._began, 0.0, 0


def measure_pace(
    steps: int, data: Shards, val: Shards, input_spec: dict[str, Any], entry: Train, policy: Policy, *, title: str
) -> tuple[float, float | None]:
    """Returns the seconds of a training before its steps have their speed, and of one step then.

    Args:
        steps: that are measured; the training has to have some more.
        data: training examples; see ``fit`` for the others.
        val: validation examples.
        input_spec: the content of the model's input.json.
        entry: what is trained.
        policy: how it computes.
        title: what messages call the training.
    """
    meter = Pace(steps)
    with suppress(Enough):
        fit.fit(data, val, input_spec, entry, policy, title=title, log=lambda row, epoch: None, watch=[meter])
    return meter.start, meter.step
