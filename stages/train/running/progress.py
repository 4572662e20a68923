"""Shows a training while it runs: a live line in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable, Sequence

import keras
from rich.progress import TextColumn

from convoy.machine.progress import make_bar

PLAIN_SECONDS = 20  # between two plain lines within an epoch
LIVE_SECONDS = 0.1  # between two changes of the live line, which has to wait for the step whose loss it shows
MEASURED = 2.0  # seconds of steps after which a line tells how long the training will take


class Progress(keras.callbacks.Callback):
    """Epoch, step, loss, accuracy, examples/s and time left.

    Args:
        title: of the training.
        epochs: of the training.
        examples: of an epoch.
        steps: of an epoch.
        log: is given each row of the history, with the speed.
        rows: of the history; another callback adds that of an epoch before this one looks.

    Attributes:
        examples_per_second: over all steps but the first, which builds the graph.
        validation_seconds: that the last validation took.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        examples: int,
        steps: int,
        log: Callable[[dict[str, float], int], None],
        rows: Sequence[dict[str, float]],
    ) -> None:
        super().__init__()
        self.validation_seconds = 0.0
        self._title, self._epochs, self._examples, self._steps = title, epochs, examples, steps
        self._log, self._rows = log, rows
        self._bar = make_bar(TextColumn("{task.fields[state]}"))
        self._task = self._bar.add_task(title, total=epochs * steps, state="")
        self._busy, self._done = 0.0, 0  # seconds in training steps, and steps, without the first
        self._epoch = self._step = 0  # the step is the last one that ended in the epoch
        self._line_at = self._started = self._step_at = 0.0
        self._foretold = self._begun = False

    @property
    def examples_per_second(self) -> float:
        """Speed of training so far; 0 before the second step."""
        return self._done * self._examples / self._steps / self._busy if self._busy else 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._bar.start()
        self._started = self._line_at = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch, self._step = epoch, 0
        self._step_at = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        step = min(batch + 1, self._steps)  # of several per execution the last ones of an epoch may be fewer
        if step == self._steps:
            float(logs["loss"])  # waits for the last step, for which else validation would wait, where nobody counts it
        now = time.monotonic()
        if self._begun:
            self._busy += now - self._step_at
            self._done += step - self._step
        self._begun, self._step, self._step_at = True, step, now
        if self._busy > MEASURED and not self._foretold:
            self._foretell()
        if not self._bar.disable:
            if now - self._line_at > LIVE_SECONDS:
                self._line_at = now
                done = self._epoch * self._steps + step
                self._bar.update(self._task, completed=done, state=self._state(step, logs))
        elif now - self._line_at > PLAIN_SECONDS:
            self._say(self._state(step, logs))

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.validation_seconds = -time.monotonic()

    def on_test_end(self, logs: dict | None = None) -> None:
        self.validation_seconds += time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        row = self._rows[-1]
        self._log(row | {"examples_per_second": self.examples_per_second}, epoch + 1)
        self._say(
            f"epoch {epoch + 1}/{self._epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  "
            f"val {row['val_accuracy']:.2%}  {self.examples_per_second:,.0f} examples/s  {self._left()} left"
        )

    def close(self) -> None:
        """Gives the terminal back, however the training ended."""
        self._bar.stop()

    def _foretell(self) -> None:
        """Says what the steps so far let expect, where it is worth waiting for."""
        self._foretold = True
        epoch = self._busy / self._done * self._steps
        if epoch * self._epochs > PLAIN_SECONDS:
            self._say(
                f"about {epoch:,.1f} s per epoch and {epoch * self._epochs / 60:,.1f} min in all, without validation, "
                f"by its first {self._done} steps"
            )

    def _state(self, step: int, logs: dict[str, float]) -> str:
        loss, accuracy = (logs.get(f"output_{key}", logs.get(key, math.nan)) for key in ("loss", "accuracy"))
        return (
            f"epoch {self._epoch + 1}/{self._epochs}  step {step}/{self._steps}  loss {float(loss):.4f}  "
            f"accuracy {float(accuracy):.2%}  {self.examples_per_second:,.0f} examples/s  {self._left()} left"
        )

    def _left(self) -> str:
        """Time left at the pace so far, validation included."""
        left = (self._epochs - self._epoch) * self._steps - self._step
        seconds = (time.monotonic() - self._started) / (self._done + 1) * max(0, left)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _say(self, text: str) -> None:
        self._line_at = time.monotonic()
        self._bar.console.print(f"{self._title}  {text}", highlight=False, soft_wrap=True)
