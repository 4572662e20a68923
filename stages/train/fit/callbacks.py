"""What happens between the steps and epochs of a training that its weights depend on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from convoy.errors import DivergedError
from convoy.model.backend import all_layers


class EpochSeeds(keras.callbacks.Callback):
    """Sets the order of examples and the state of every random layer from (seed, layer, epoch)."""

    def __init__(self, reorder: Callable[[int], None], seed: int) -> None:
        super().__init__()
        self._reorder, self._seed = reorder, seed

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._reorder(epoch)
        for number, layer in enumerate(all_layers(self.model)):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                word = np.random.SeedSequence([self._seed, number, epoch]).generate_state(1)[0] >> 1  # 31 bits
                generator.state.assign(np.array([word, 0]))


class History(keras.callbacks.Callback):
    """Gathers the history, which history.csv holds.

    Args:
        rows: of the epochs before a resumed training.

    Attributes:
        rows: one per finished epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate.
    """

    def __init__(self, rows: Sequence[dict[str, float]] = ()) -> None:
        super().__init__()
        self.rows = list(rows)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        # Sorted so that the numbers of the main output replace the totals over all outputs.
        main_last = sorted(logs.items(), key=lambda item: "output_" in item[0])
        found = {key.replace("output_", ""): float(value) for key, value in main_last}
        row = {"epoch": epoch + 1} | {key: found[key] for key in ("loss", "accuracy", "val_loss", "val_accuracy")}
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rows.append(row | {"learning_rate": float(rate)})


class StopAtNaN(keras.callbacks.Callback):
    """Ends the training after the step whose loss, or the epoch whose weights, are no finite numbers.

    The loss of a step is looked at one step later: whoever asks for a number waits for it, and a GPU would then have
    nothing to do while the next batch is read and sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._last: tuple[int, Any] | None = None  # a step and its loss, which may still be under way

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self._look()
        self._last = batch, logs["loss"]

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._look()
        for weight in self.model.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
                self._stop(f"the weight {weight.path} is no finite number after epoch {epoch + 1}")
        if not math.isfinite(logs["val_loss"]):
            self._stop(f"the validation loss is {float(logs['val_loss'])} after epoch {epoch + 1}")

    def _look(self) -> None:
        if self._last is not None:
            batch, loss = self._last
            if not math.isfinite(loss):
                self._stop(f"the loss is {float(loss)} at epoch {self._epoch + 1}, step {batch + 1}")
        self._last = None

    def _stop(self, what: str) -> None:
        raise DivergedError(f"{what}. Try a smaller learning_rate or a longer warmup.")
