"""The one training loop, for every architecture and every Keras backend."""

import inspect
import json
import math
import platform
import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import ops

from convoy.data.shards import Shards
from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError, DivergedError, ServiceError
from convoy.model import backend
from stages.train.fit import resident, vectors
from stages.train.fit.augmentation import before
from stages.train.fit.batches import Batches, Labelled, Pairs, encoded
from stages.train.running.checkpoints import Checkpoints, State
from stages.train.running.progress import Progress

UNTRAINED = 0.05  # share of the first statistics of batch normalisation from which predictions suffer


@dataclass(frozen=True)
class Result:
    """What a training leaves.

    Attributes:
        model: maps examples to probabilities, or pairs to logits; auxiliary outputs and the optimizer are gone.
        history: one row per epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate.
        parameters: trainable ones of ``model``.
        examples_per_second: in training, without validation.
        validation_examples_per_second: of the last validation.
    """

    model: keras.Model
    history: pd.DataFrame
    parameters: int
    examples_per_second: float
    validation_examples_per_second: float


class TokenCrossentropy(keras.losses.Loss):
    """Cross-entropy of the next token, given logits (n, steps, words): the mean over all tokens, weighted.

    Args:
        smoothing: share of the target probability that is spread over all words.

    Source: Szegedy et al. 2015, arXiv:1512.00567, section 7.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__(name="loss", reduction="mean_with_sample_weight")
        self._smoothing = smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        right = ops.take_along_axis(y_pred, ops.cast(y_true, "int32")[..., None], axis=-1)[..., 0]
        spread = self._smoothing * ops.mean(y_pred, axis=-1) if self._smoothing else 0.0
        return ops.logsumexp(y_pred, axis=-1) - (1 - self._smoothing) * right - spread


class ShortAverage:
    """Of an optimizer: the average of the weights is short at first, and so forgets the untrained ones.

    Step t, from 0, keeps min(ema_momentum, (1 + t) / (10 + t)) of the average and takes the rest from the weights.
    Keras keeps ``ema_momentum`` from the second step on: after 780 steps of 0.999 the first step's weights, which know
    nothing, are 46 % of the average.

    Source: TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates``.
    """

    @property
    def ema_momentum(self) -> Any:
        """Returns the share at the step that is under way; Keras asks for it within the compiled step."""
        step = ops.cast(self.iterations, "float32")
        return ops.minimum(self._longest, (1 + step) / (10 + step))

    @ema_momentum.setter
    def ema_momentum(self, longest: float) -> None:
        self._longest = longest


class EpochSeeds(keras.callbacks.Callback):
    """Sets the order of examples and the state of every random layer from (seed, layer, epoch)."""

    def __init__(self, reorder: Callable[[int], None], seed: int) -> None:
        super().__init__()
        self._reorder, self._seed = reorder, seed

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._reorder(epoch)
        for number, layer in enumerate(_layers(self.model)):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                word = np.random.SeedSequence([self._seed, number, epoch]).generate_state(1)[0] >> 1  # 31 bits
                generator.state.assign(np.array([word, 0]))


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields all layers, also those of models within the model."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


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


class Keep(keras.callbacks.Callback):
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


def pace(steps: int, **settings: Any) -> tuple[float, float]:
    """Returns the seconds of a training before its steps have their speed, and of one step then.

    Args:
        steps: that are measured; the training has to have some more.
        settings: arguments of ``fit``.
    """
    meter = Pace(steps)
    with suppress(Enough):
        fit(**settings, log=lambda row, epoch: None, watch=[meter])
    return meter.start, meter.step


def fit(
    data: Shards,
    val: Shards,
    takes: dict[str, Any],
    *,
    architecture: str,
    sizes: dict[str, Any],
    epochs: int,
    batch: int,
    optimizer: str,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    clip_norm: float | None,
    ema: float,
    schedule: str,
    warmup: float,
    milestones: list[float],
    label_smoothing: float,
    class_weights: bool,
    patience: int | None,
    augmentation: dict[str, Any],
    devices: int,
    deterministic: bool,
    precision: str,
    jit_compile: bool,
    steps_per_execution: int,
    threads: int | None,
    word_vectors: Path | None,
    seed: int,
    title: str,
    log: Callable[[dict[str, float], int], None],
    watch: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
) -> Result:
    """Trains one model; see ``train`` for the arguments, of which none is ``auto`` here: see ``policy.py``.

    Args:
        data: training examples.
        val: validation examples.
        takes: what the model takes and what it means; see ``inputs``.
        title: what the progress display calls this training.
        log: is given each epoch's row of the history, and the speed, as (numbers, epoch).
        watch: callbacks beside our own.
        checkpoints: where the training is kept between epochs.
        state: the checkpoint that it goes on from.
    """
    backend.prepare(devices, threads, deterministic)
    keras.utils.clear_session()  # layers without a name of their own are numbered from 0 in every training
    keras.utils.set_random_seed(seed)
    module = import_module(f"stages.train.architectures.{architecture}")
    loss_weights = getattr(module, "LOSS_WEIGHTS", {"output": 1.0})
    heads, translates = len(loss_weights) > 1, takes["kind"] == "translation"
    with (
        backend.distributed(devices),
        backend.computing_in(precision),
        backend.fused_normalisation(),
        backend.seeds_from(seed),
    ):
        model = build(architecture, data, takes, sizes)
        if word_vectors is not None:
            if "embedding" not in (layer.name for layer in model.layers):
                raise ConfigurationError(f"{architecture} has no word vectors; without word_vectors it can be trained.")
            vectors.load(word_vectors, model.get_layer("embedding"), Vocabulary.from_json(takes["text"]))
        served = keras.Model(model.input, model.output["output"] if heads else model.output, name=model.name)
        if augmentation:
            model = before(model, augmentation)

        steps = math.ceil(len(data) / batch)
        rate = learning_rates(schedule, learning_rate, epochs * steps, round(warmup * steps), milestones)
        if translates:
            loss = TokenCrossentropy(label_smoothing)
            accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        else:
            loss = keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
            accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        weighted = translates or devices > 1  # so that examples and tokens of weight 0 do not count
        model.compile(
            make_optimizer(optimizer, rate, momentum, weight_decay, clip_norm, ema),
            loss=dict.fromkeys(loss_weights, loss) if heads else loss,
            loss_weights=loss_weights if heads else None,
            **{"weighted_metrics" if weighted else "metrics": {"output": [accuracy]} if heads else [accuracy]},
            jit_compile=jit_compile,
            steps_per_execution=min(steps_per_execution, steps),
        )
        # Where a step has to make the optimizer's variables, TensorFlow traces it twice: seconds of a deep network.
        model.optimizer.build(model.trainable_variables)
        batches, checks = (
            _batches(split, takes, model, list(loss_weights), class_weights and order is not None, batch=batch,
                     seed=order, devices=devices)
            for split, order in ((data, seed), (val, None))
        )  # fmt: skip
        fed, reorder, array = batches, batches.reorder, takes.get("array")
        if resident.holds(batches, data, array, devices):
            held = resident.Held(batches, data.column(array) if array else None)
            fed, reorder = held.data, held.reorder
        elif keras.backend.backend() == "tensorflow":
            fed = resident.streamed(batches)
        if keras.backend.backend() == "tensorflow":
            checks = resident.streamed(checks)

        momenta = [layer.momentum for layer in _layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
        rises = warmup if schedule == "cosine" else 0.0
        for doubt in doubts(epochs, steps, ema=ema, warmup=rises, statistics=max(momenta, default=0.0)):
            print(f"{title}  warning: {doubt}", flush=True)
        progress = Progress(title, epochs, len(data), steps, log, model.optimizer)
        # The averaged weights are in the model first: what follows looks at them.
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if ema else []
        callbacks += [EpochSeeds(reorder, seed), StopAtNaN(), progress, *watch]
        stopping = None
        if patience is not None:
            monitor = "val_output_loss" if heads else "val_loss"
            stopping = keras.callbacks.EarlyStopping(monitor, patience=patience, mode="min", restore_best_weights=True)
            callbacks.append(stopping)
        keep = None if checkpoints is None else Keep(checkpoints, state, progress.rows, stopping)
        if keep is not None:
            callbacks.append(keep)
        progress.rows.extend(state.rows if state else ())
        try:
            model.fit(
                fed,
                validation_data=checks,
                initial_epoch=state.epochs if state else 0,
                epochs=epochs,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        finally:
            progress.close()
            if keep is not None:
                keep.close()
    if precision != "float32":  # what is stored computes in float32 everywhere
        weights = served.get_weights()
        keras.utils.clear_session()  # the names of layers begin at 0 again
        plain = build(architecture, data, takes, sizes, heads=False)
        served = keras.Model(plain.input, plain.output, name=plain.name)
        served.set_weights(weights)
    parameters = sum(math.prod(weight.shape) for weight in served.trainable_weights)
    return Result(
        served,
        pd.DataFrame(progress.rows),
        parameters,
        progress.examples_per_second,
        len(val) / progress.validation_seconds,
    )


def build(
    architecture: str, data: Shards, takes: dict[str, Any], sizes: dict[str, Any], heads: bool = True
) -> keras.Model:
    """Returns an untrained network for the data, with its auxiliary outputs if it has some and ``heads``.

    Raises:
        ConfigurationError: it refuses the data or the sizes.
    """
    module = import_module(f"stages.train.architectures.{architecture}")
    auxiliary = {"heads": True} if heads and len(getattr(module, "LOSS_WEIGHTS", {})) > 1 else {}
    found = given(architecture, data, takes)
    try:
        return module.build(**found, **auxiliary, **sizes)
    except (ValueError, TypeError) as error:
        known = ", ".join(f"{name} = {value}" for name, value in found.items())
        raise ConfigurationError(
            f"{architecture} cannot be built for {known} with the sizes {sizes}: {error}"
        ) from error


def given(architecture: str, data: Shards, takes: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an architecture's ``build`` that follow from the data."""
    if takes["kind"] == "translation":
        found = {f"{side}_words": len(Vocabulary.from_json(takes[side])) for side in ("source", "target")}
        found |= {"length": takes["length"]}
    else:
        found = {"classes": len(takes["classes"])}
        if takes["kind"] == "text":
            found |= {"words": len(Vocabulary.from_json(takes["text"])), "length": takes["length"]}
        else:
            found |= {"input_shape": data.shape(takes["array"])}
    build = import_module(f"stages.train.architectures.{architecture}").build
    return {name: found[name] for name in inspect.signature(build).parameters if name in found}


def _batches(
    split: Shards, takes: dict[str, Any], model: keras.Model, outputs: list[str], balanced: bool, **settings: Any
) -> Batches:
    if takes["kind"] == "translation":
        sides = (
            encoded(split, side, Vocabulary.from_json(takes[side]), takes["length"]) for side in ("source", "target")
        )
        return Pairs(*sides, **settings)
    classes = len(takes["classes"])
    weights = np.ones(classes, np.float32)
    if balanced:
        counts = np.bincount(split.column("label"), minlength=classes)
        weights = (len(split) / (classes * np.maximum(counts, 1))).astype(np.float32)
    if takes["kind"] == "text":
        tokens = encoded(split, "text", Vocabulary.from_json(takes["text"]), takes["length"])
        settings |= {"tokens": tokens, "length": model.input_shape[1]}
    return Labelled(split, takes.get("array"), outputs=outputs, class_weights=weights, **settings)


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


def doubts(epochs: int, each: int, *, ema: float, warmup: float, statistics: float) -> list[str]:
    """Returns a line for each value that suits longer trainings only, with the numbers and what to do.

    Args:
        epochs: of the training.
        each: steps per epoch.
        ema: see ``train``.
        warmup: epochs over which the rate rises; 0 where the schedule has none.
        statistics: the largest momentum of batch normalisation; 0 without any.
    """
    steps, found = epochs * each, []
    if ema and (span := 1 / (1 - ema)) > steps / 2:
        less = f"ema: {1 - 10 / steps:.3g} averages a tenth" if steps > 20 else "ema: 0 averages none"
        found.append(
            f"ema = {ema:g} averages about {span:,.0f} steps, and this training has {steps:,}. It averages about the "
            f"last {(steps + 10) / 9:,.0f}. {less}; or train for more epochs."
        )
    if warmup > epochs / 2:
        found.append(
            f"warmup = {warmup:g} of epochs = {epochs}: the learning rate rises for most of the training. "
            f"warmup: {epochs / 10:g} is a tenth; or train for more epochs."
        )
    if (left := statistics**steps) > UNTRAINED:
        found.append(
            f"batch normalisation with momentum = {statistics:g} keeps {left:.0%} of its first statistics after "
            f"{steps:,} steps: predictions will not be those of training. Take a smaller batch or more epochs."
        )
    return found


def make_optimizer(
    name: str, rate: Any, momentum: float, weight_decay: float, clip_norm: float | None, ema: float
) -> keras.optimizers.Optimizer:
    """Returns an optimizer of the given name; decay spares biases, normalisation and embeddings."""
    decay = weight_decay or None
    kind = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]
    others: dict[str, Any] = {"global_clipnorm": clip_norm, "weight_decay": decay}
    if name == "sgd":
        others |= {"momentum": momentum, "nesterov": momentum > 0}
    if name == "adamw":
        others["weight_decay"] = weight_decay
    if ema:
        kind = type(kind.__new__(kind))  # that of the backend: torch has its own
        kind = type(kind.__name__, (ShortAverage, kind), {})
        others |= {"use_ema": True, "ema_momentum": ema}
    optimizer = kind(rate, **others)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
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
    return {
        "backend": keras.backend.backend(),
        "devices": backend.devices(),
        "hardware": backend.hardware(),
        "python": platform.python_version(),
        "libraries": libraries(),
    }


def libraries() -> dict[str, str]:
    """Returns the versions of what computes."""
    return {library: version(library) for library in ("keras", keras.backend.backend(), "numpy")}
