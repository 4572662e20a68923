"""The callback that keeps checkpoints, and ends a training that is asked to end."""

import signal
import threading
from typing import Any

import keras

from convoy.errors import ServiceError
from stages.train.running.checkpoints import Checkpoints, State


class Checkpointing(keras.callbacks.Callback):
    """Keeps checkpoints between epochs, and has a training begin where the last one ended; the last of the callbacks.

    A process that is asked to end, by SIGTERM, as on machines that are taken back, or by Ctrl-C, ends after the step
    that is under way: ServiceError, whose message says where the next run goes on. A second Ctrl-C does not wait.

    Args:
        checkpoints: where they are kept.
        state: the last one, if there is one.
        rows: of the history, which grow.
        stopping: the callback that may end the training early, if there is one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: State | None,
        rows: list[dict[str, float]],
        stopping: keras.callbacks.EarlyStopping | None,
    ) -> None:
        super().__init__()
        self._checkpoints, self._state, self._rows, self._stopping = checkpoints, state, rows, stopping
        self._kept = self._epoch = state.epochs if state else 0
        self._asked, self._before = threading.Event(), {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        if self._state is None:
            return
        for variables, values in (
            (self.model.weights, self._state.weights),
            (self.model.optimizer.variables, self._state.optimizer),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        if self._stopping is not None:
            for key, value in self._state.stopping.items():
                setattr(self._stopping, key, value)
            self._stopping.best_weights = self._state.best or None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        # Here, since what others did at the end of the last epoch - averages in place of weights - is undone by now.
        if epoch == (self._state.epochs if self._state else 0) or not self._checkpoints.due():
            return
        known = {"wait", "best", "best_epoch"} if self._stopping is not None else set()
        self._checkpoints.save(
            State(
                epoch,
                self._rows,
                self._checkpoints.facts(),
                [keras.ops.convert_to_numpy(one) for one in self.model.weights],
                [keras.ops.convert_to_numpy(one) for one in self.model.optimizer.variables],
                {key: getattr(self._stopping, key) for key in known},
                (self._stopping and self._stopping.best_weights) or [],
            )
        )
        self._kept = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._look()

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._look()

    def close(self) -> None:
        """Leaves the signals as they were."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:  # else a second Ctrl-C has the word
                signal.signal(number, handler)

    def _ask(self, number: int, *_: Any) -> None:
        self._asked.set()
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def _look(self) -> None:
        if self._asked.is_set():
            raise ServiceError(
                f"interrupted at epoch {self._epoch + 1}. Run again: it goes on from epoch {self._kept + 1}."
            )
