"""Losses, learning rates and optimizers of a training."""

from typing import Any

import keras
from keras import ops

from stages.train.entry import Policy, Train

UNTRAINED = 0.05  # share of the first statistics of batch normalisation from which predictions suffer


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

    iterations: Any  # of the optimizer that it is mixed into

    @property
    def ema_momentum(self) -> Any:
        """Returns the share at the step that is under way; Keras asks for it within the compiled step."""
        step = ops.cast(self.iterations, "float32")
        return ops.minimum(self._longest, (1 + step) / (10 + step))

    @ema_momentum.setter
    def ema_momentum(self, longest: float) -> None:
        self._longest = longest


def learning_rates(entry: Train, each: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate per step: a number for ``constant``, else a Keras schedule over the whole training.

    Args:
        entry: of train.
        each: steps per epoch.

    Source: step as in He et al. 2015, section 4.2; cosine from Loshchilov and Hutter 2016, arXiv:1608.03983,
    equation 5 without restarts; warm-up from Goyal et al. 2017, arXiv:1706.02677, section 2.2.
    """
    highest, steps, warmup = entry.learning_rate, entry.epochs * each, round(entry.warmup * each)
    if entry.schedule == "step":
        boundaries = [round(milestone * steps) for milestone in entry.milestones]
        values = [highest * 0.1**number for number in range(len(entry.milestones) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    if entry.schedule == "cosine":
        if warmup == 0:
            return keras.optimizers.schedules.CosineDecay(highest, steps)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=highest, warmup_steps=warmup
        )
    return highest


def make_optimizer(entry: Train, rate: Any) -> keras.optimizers.Optimizer:
    """Returns the optimizer of an entry; decay spares biases, normalisation and embeddings.

    Args:
        entry: of train.
        rate: a number, or a schedule.
    """
    name, decay = entry.optimizer, entry.weight_decay or None
    kind = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]
    others: dict[str, Any] = {"global_clipnorm": entry.clip_norm, "weight_decay": decay}
    if name == "sgd":
        others |= {"momentum": entry.momentum, "nesterov": entry.momentum > 0}
    if name == "adamw":
        others["weight_decay"] = entry.weight_decay
    if entry.ema:
        kind = type(kind.__new__(kind))  # that of the backend: torch has its own
        kind = type(kind.__name__, (ShortAverage, kind), {})
        others |= {"use_ema": True, "ema_momentum": entry.ema}
    optimizer = kind(rate, **others)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
    return optimizer


def doubts(entry: Train, each: int, statistics: float) -> list[str]:
    """Returns a line for each value that suits longer trainings only, with the numbers and what to do.

    Args:
        entry: of train.
        each: steps per epoch.
        statistics: the largest momentum of batch normalisation; 0 without any.
    """
    epochs, ema = entry.epochs, entry.ema
    warmup = entry.warmup if entry.schedule == "cosine" else 0.0
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


def compile_model(
    model: keras.Model, entry: Train, policy: Policy, each: int, kind: str, loss_weights: dict[str, float]
) -> None:
    """Gives a network its loss, metrics and optimizer.

    Args:
        model: with one output, or with those of ``loss_weights``.
        entry: of train.
        policy: how it computes.
        each: steps per epoch.
        kind: of the data.
        loss_weights: output -> weight of its loss.
    """
    heads, translates = len(loss_weights) > 1, kind == "translation"
    rate = learning_rates(entry, each)
    if translates:
        loss = TokenCrossentropy(entry.label_smoothing)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    else:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=entry.label_smoothing)
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    weighted = translates or entry.devices > 1  # so that examples and tokens of weight 0 do not count
    model.compile(
        make_optimizer(entry, rate),
        loss=dict.fromkeys(loss_weights, loss) if heads else loss,
        loss_weights=loss_weights if heads else None,
        **{"weighted_metrics" if weighted else "metrics": {"output": [accuracy]} if heads else [accuracy]},
        jit_compile=policy.jit_compile,
        steps_per_execution=min(policy.steps_per_execution, each),
    )
    # Where a step has to make the optimizer's variables, TensorFlow traces it twice: seconds of a deep network.
    model.optimizer.build(model.trainable_variables)
