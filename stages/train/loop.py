"""The one training loop, for every architecture and every Keras backend."""

import json
import math
import platform
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from stages import compute
from stages.errors import ConfigurationError, DivergedError
from stages.shards import Shards
from stages.train.progress import Progress


@dataclass(frozen=True)
class Result:
    """What a training leaves.

    Attributes:
        model: maps pictures to probabilities; auxiliary outputs and the optimizer are gone.
        history: one row per epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate.
        parameters: trainable ones of ``model``.
        images_per_second: in training, without validation.
    """

    model: keras.Model
    history: pd.DataFrame
    parameters: int
    images_per_second: float


class Batches(keras.utils.PyDataset):
    """Batches in an order that follows from (seed, epoch) alone, so that a training can be repeated and resumed.

    Each is (pictures uint8 (n, height, width, channels), one-hot labels (n, classes), weights (n,)); where the model
    has several outputs, the labels are given once for each. For several devices n is a multiple of them: the last
    batch is filled up with examples of weight 0, as a device without an example fails.
    """

    def __init__(
        self,
        shards: Shards,
        classes: int,
        batch: int,
        outputs: Sequence[str],
        weights: np.ndarray,
        seed: int | None,
        devices: int = 1,
    ) -> None:
        super().__init__()
        self._devices = devices
        self._shards, self._batch, self._outputs, self._weights, self._seed = shards, batch, outputs, weights, seed
        self._one_hot = np.eye(classes, dtype=np.float32)
        self._order = np.arange(len(shards))

    def __len__(self) -> int:
        return math.ceil(len(self._shards) / self._batch)

    def __getitem__(self, number: int) -> tuple:
        chosen = self._order[number * self._batch : (number + 1) * self._batch]
        filling = -len(chosen) % self._devices
        block = self._shards[np.concatenate([chosen, np.resize(chosen, filling)])]
        target, weight = self._one_hot[block["label"]], self._weights[block["label"]]
        weight[len(chosen) :] = 0
        if len(self._outputs) == 1:
            return block["image"], target, weight
        return block["image"], dict.fromkeys(self._outputs, target), dict.fromkeys(self._outputs, weight)

    def reorder(self, epoch: int) -> None:
        """Shuffles for one epoch."""
        self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._shards))


class EpochSeeds(keras.callbacks.Callback):
    """Sets the order of examples and the state of every random layer from (seed, layer, epoch)."""

    def __init__(self, batches: Batches, seed: int) -> None:
        super().__init__()
        self._batches, self._seed = batches, seed

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._batches.reorder(epoch)
        for number, layer in enumerate(self.model.layers):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                word = np.random.SeedSequence([self._seed, number, epoch]).generate_state(1)[0] >> 1  # 31 bits
                generator.state.assign(np.array([word, 0]))


class StopAtNaN(keras.callbacks.Callback):
    """Ends the training at the step whose loss, or the epoch whose weights, are no finite numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            self._stop(f"the loss is {float(logs['loss'])} at epoch {self._epoch + 1}, step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        for weight in self.model.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
                self._stop(f"the weight {weight.path} is no finite number after epoch {epoch + 1}")
        if not math.isfinite(logs["val_loss"]):
            self._stop(f"the validation loss is {float(logs['val_loss'])} after epoch {epoch + 1}")

    def _stop(self, what: str) -> None:
        raise DivergedError(f"{what}. Try a smaller learning_rate or a longer warmup.")


def fit(
    data: Shards,
    val: Shards,
    classes: int,
    *,
    architecture: str,
    sizes: dict[str, Any],
    epochs: int,
    batch: int,
    optimizer: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    schedule: str,
    warmup: float,
    milestones: list[float],
    label_smoothing: float,
    class_weights: bool,
    patience: int | None,
    devices: int,
    seed: int,
    title: str,
    log: Callable[[dict[str, float], int], None],
) -> Result:
    """Trains one model; see ``train`` for the arguments.

    Args:
        data: training examples.
        val: validation examples.
        classes: number of classes.
        title: what the progress display calls this training.
        log: is given each epoch's row of the history, and the speed, as (numbers, epoch).
    """
    compute.prepare(devices)
    keras.utils.clear_session()  # layers without a name of their own are numbered from 0 in every training
    keras.utils.set_random_seed(seed)
    module = import_module(f"stages.train.architectures.{architecture}")
    loss_weights = getattr(module, "LOSS_WEIGHTS", {"output": 1.0})
    heads = {"heads": True} if len(loss_weights) > 1 else {}
    with compute.distributed(devices):
        try:
            model = module.build(input_shape=data.shape("image"), classes=classes, **heads, **sizes)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{architecture} cannot be built for pictures of {data.shape('image')} with the sizes {sizes}: {error}"
            ) from error
        served = keras.Model(model.input, model.output["output"] if heads else model.output, name=model.name)

        steps = math.ceil(len(data) / batch)
        rate = learning_rates(schedule, learning_rate, epochs * steps, round(warmup * steps), milestones)
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        model.compile(
            make_optimizer(optimizer, rate, momentum, weight_decay),
            loss=dict.fromkeys(loss_weights, loss) if heads else loss,
            loss_weights=loss_weights if heads else None,
            # Weighted, so that examples of weight 0 do not count.
            **{"weighted_metrics" if devices > 1 else "metrics": {"output": [accuracy]} if heads else [accuracy]},
            jit_compile=compute.compilation(),
        )
        outputs, even = list(loss_weights), np.ones(classes, np.float32)
        counts = np.bincount(data.column("label"), minlength=classes)
        balanced = (len(data) / (classes * np.maximum(counts, 1))).astype(np.float32)
        batches = Batches(data, classes, batch, outputs, balanced if class_weights else even, seed, devices)
        checks = Batches(val, classes, batch, outputs, even, None, devices)

        progress = Progress(title, epochs, len(data), steps, log, model.optimizer)
        callbacks = [EpochSeeds(batches, seed), StopAtNaN(), progress]
        if patience is not None:
            monitor = "val_output_loss" if heads else "val_loss"
            callbacks.append(
                keras.callbacks.EarlyStopping(monitor, patience=patience, mode="min", restore_best_weights=True)
            )
        try:
            model.fit(batches, validation_data=checks, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)
        finally:
            progress.close()
    parameters = sum(math.prod(weight.shape) for weight in served.trainable_weights)
    return Result(served, pd.DataFrame(progress.rows), parameters, progress.images_per_second)


def learning_rates(
    schedule: str, highest: float, steps: int, warmup: int, milestones: Sequence[float]
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate per step: a number for ``constant``, else a Keras schedule over ``steps`` steps.

    Source: step as in He et al. 2015, section 4.2; cosine from Loshchilov and Hutter 2016, arXiv:1608.03983,
    equation 5 without restarts; warm-up from Goyal et al. 2017, arXiv:1706.02677, section 2.2.
    """
    if schedule == "step":
        boundaries = [round(milestone * steps) for milestone in milestones]
        values = [highest * 0.1**number for number in range(len(milestones) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    if schedule == "cosine":
        if warmup == 0:
            return keras.optimizers.schedules.CosineDecay(highest, steps)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=highest, warmup_steps=warmup
        )
    return highest


def make_optimizer(name: str, rate: Any, momentum: float, weight_decay: float) -> keras.optimizers.Optimizer:
    """Returns an optimizer of the given name; decay spares biases and normalisation."""
    decay = weight_decay or None
    if name == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum, nesterov=momentum > 0, weight_decay=decay)
    elif name == "adam":
        optimizer = keras.optimizers.Adam(rate, weight_decay=decay)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def save(model: keras.Model, path: Path) -> None:
    """Writes ``model`` as a .keras file whose bytes follow from the model alone, so that DVC sees equal as equal.

    Keras writes the time of day and memory addresses (as names of shared objects) into the archive; the first is
    taken out, the second are numbered.
    """
    numbers: dict[str, str] = {}
    partial = path.with_name("partial.keras")
    model.save(partial)
    with zipfile.ZipFile(partial) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": ""}).encode()
            if entry.filename == "config.json":
                content = re.sub(
                    r'(?<="shared_object_id": )\d+',
                    lambda found: numbers.setdefault(found[0], str(len(numbers))),
                    content.decode(),
                ).encode()
            target.writestr(zipfile.ZipInfo(entry.filename), content)
    partial.unlink()


def environment() -> dict[str, Any]:
    """Returns what a training ran on: backend, devices, Python and library versions."""
    backend = keras.backend.backend()
    libraries = ("keras", backend, "numpy")
    return {
        "backend": backend,
        "devices": compute.devices(),
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in libraries},
    }
