"""The one training loop, for every architecture and every Keras backend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import pandas as pd

from convoy.data.shards import Shards
from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError
from convoy.model import backend
from stages.train.entry import Policy, Train
from stages.train.fit import network, resident, vectors
from stages.train.fit.augmentation import before
from stages.train.fit.batches import make_batches
from stages.train.fit.callbacks import EpochSeeds, History, StopAtNaN
from stages.train.fit.optimisation import compile_model, doubts
from stages.train.running.checkpointing import Checkpointing
from stages.train.running.checkpoints import Checkpoints, State
from stages.train.running.progress import Progress


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


def fit(
    data: Shards,
    val: Shards,
    input_spec: dict[str, Any],
    entry: Train,
    policy: Policy,
    *,
    title: str,
    log: Callable[[dict[str, float], int], None],
    watch: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    state: State | None = None,
) -> Result:
    """Trains one model.

    Args:
        data: training examples.
        val: validation examples.
        input_spec: the content of the model's input.json; see ``make_input_spec``.
        entry: what is trained, and how.
        policy: how it computes, which the entry may leave open.
        title: what the progress display calls this training.
        log: is given each epoch's row of the history, and the speed, as (numbers, epoch).
        watch: callbacks beside our own.
        checkpoints: where the training is kept between epochs.
        state: the checkpoint that it goes on from.

    Raises:
        ConfigurationError: the architecture refuses the data or its sizes, or has no word vectors.
        DivergedError: the loss is no longer a finite number.
        ServiceError: it was asked to end.
    """
    backend.prepare(entry.devices, policy.threads, entry.deterministic)
    keras.utils.clear_session()  # layers without a name of their own are numbered from 0 in every training
    keras.utils.set_random_seed(entry.seed)
    with (
        backend.distributed(entry.devices),
        backend.computing_in(policy.precision),
        backend.fused_normalisation(),
        backend.seeds_from(entry.seed),
    ):
        model, served = _networks(data, input_spec, entry)
        steps, loss_weights = math.ceil(len(data) / entry.batch), network.loss_weights(entry.architecture)
        compile_model(model, entry, policy, steps, input_spec["kind"], loss_weights)
        fed, checks, reorder = _feeds(data, val, input_spec, model, list(loss_weights), entry)
        for doubt in doubts(entry, steps, _longest_statistics(model)):
            print(f"{title}  warning: {doubt}", flush=True)
        history = History(state.rows if state else ())
        progress = Progress(title, entry.epochs, len(data), steps, log, history.rows)
        # The averaged weights are in the model first: what follows looks at them.
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if entry.ema else []
        callbacks += [EpochSeeds(reorder, entry.seed), StopAtNaN(), history, progress, *watch]
        stopping = _stopping(entry, len(loss_weights) > 1)
        callbacks += [] if stopping is None else [stopping]
        keeping = None if checkpoints is None else Checkpointing(checkpoints, state, history.rows, stopping)
        callbacks += [] if keeping is None else [keeping]
        first, last = state.epochs if state else 0, entry.epochs
        try:
            model.fit(
                fed, validation_data=checks, initial_epoch=first, epochs=last, callbacks=callbacks, shuffle=False,
                verbose=0,
            )  # fmt: skip
        finally:
            progress.close()
            if keeping is not None:
                keeping.close()
    if policy.precision != "float32":
        served = network.in_float32(served, entry.architecture, data, input_spec, entry.sizes)
    parameters = sum(math.prod(weight.shape) for weight in served.trainable_weights)
    validated = len(val) / progress.validation_seconds
    return Result(served, pd.DataFrame(history.rows), parameters, progress.examples_per_second, validated)


def _networks(data: Shards, input_spec: dict[str, Any], entry: Train) -> tuple[keras.Model, keras.Model]:
    """Returns the network that is trained, and the one that is kept: without auxiliary outputs and augmentation.

    Both have the same weights.
    """
    model = network.build(entry.architecture, data, input_spec, entry.sizes)
    if entry.word_vectors is not None:
        if "embedding" not in (layer.name for layer in model.layers):
            raise ConfigurationError(
                f"{entry.architecture} has no word vectors; without word_vectors it can be trained."
            )
        words = Vocabulary.from_json(input_spec["text"])
        vectors.load(entry.word_vectors, model.get_layer("embedding"), words)
    output = model.output["output"] if isinstance(model.output, dict) else model.output
    served = keras.Model(model.input, output, name=model.name)
    return before(model, entry.augmentation) if entry.augmentation else model, served


def _feeds(
    data: Shards, val: Shards, input_spec: dict[str, Any], model: keras.Model, outputs: list[str], entry: Train
) -> tuple[Any, Any, Callable[[int], None]]:
    """Returns what Keras trains on, what it validates on, and the function that shuffles the first for an epoch."""
    batches, checks = (
        make_batches(split, input_spec, model, outputs, entry, training)
        for split, training in ((data, True), (val, False))
    )
    fed, reorder, array = batches, batches.reorder, input_spec.get("array")
    if resident.holds(batches, data, array, entry.devices):
        held = resident.Held(batches, data.column(array) if array else None)
        fed, reorder = held.data, held.reorder
    elif keras.backend.backend() == "tensorflow":
        fed = resident.streamed(batches)
    if keras.backend.backend() == "tensorflow":
        checks = resident.streamed(checks)
    return fed, checks, reorder


def _longest_statistics(model: keras.Model) -> float:
    """Returns the largest momentum of batch normalisation; 0 without any."""
    found = [one.momentum for one in backend.all_layers(model) if isinstance(one, keras.layers.BatchNormalization)]
    return max(found, default=0.0)


def _stopping(entry: Train, heads: bool) -> keras.callbacks.EarlyStopping | None:
    if entry.patience is None:
        return None
    monitor = "val_output_loss" if heads else "val_loss"
    return keras.callbacks.EarlyStopping(monitor, patience=entry.patience, mode="min", restore_best_weights=True)
