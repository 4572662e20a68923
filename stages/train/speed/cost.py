"""What a training will cost, before anything of it is allocated: operations, and memory.

The numbers of ``estimate`` hold on every backend; the constants of memory were measured with TensorFlow on a CPU
(``benchmarks/cost.py``).
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError, ServiceError
from convoy.machine import gpus, room
from convoy.model import backend
from stages.train.entry import Policy, Train
from stages.train.fit import resident
from stages.train.speed.count import Lengths, count, sketched

MIB, GIB = 2**20, 2**30
BASE = 855 * MIB  # of a process with Python, TensorFlow and MLflow after a first step; half of it is their code
LAYER = 3 * MIB  # for each with a kernel: its part of the graph, forth and back, and the code compiled for it
LARGEST = 3  # tensors of the size of the largest that a step holds beside what it keeps: gradients, what kernels need
COPIES = 3  # of the weights that writing them takes: their bytes, the archive, the archive with other times
SLACK = 1.25  # how far the estimate may be off
TOKEN, ROW = 4, 8  # bytes of each token and of each text, see ``vocabulary.Ragged``
PARTS = (2, 4, 8, 16, 32, 64, 128)  # by what an advice divides batch and width


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Attributes:
        parameters: trainable ones, those of auxiliary outputs too.
        flops: forward-pass FLOPs per example (a multiply-add counts as two); of a text of average length.
        examples: of one epoch.
        weights: bytes of weights, gradients and what the optimizer keeps, on each device.
        step: bytes that a step takes beside them, on each device; what writing the weights takes, if that is more.
        devices: that share each batch.
        data: bytes of the examples, which are read through the system's cache: it gives them back when memory is short.
        held: bytes of those that stay in memory.
    """

    parameters: int
    flops: int
    examples: int
    weights: int
    step: int
    devices: int
    data: int
    held: int

    @property
    def memory(self) -> int:
        """Largest memory of the process, in bytes, where it trains on the CPU."""
        return BASE + self.devices * (self.weights + self.step) + self.data + self.held

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.flops / 1e6:,.1f} MFLOPs an example (forward), "
            f"{self.examples:,} examples; about {_size(self.memory)} of memory, {_size(self.weights)} of it for "
            f"weights, {_size(self.step)} for a step"
        )


def estimate(data: Shards, input_spec: dict[str, Any], entry: Train, precision: str) -> Cost:
    """Returns what a training costs. The arguments and what is raised are those of ``count.sketched``."""
    with sketched(data, input_spec, entry, precision) as sketch:
        model, texts = sketch.model, sketch.texts
        found = count(model, sketch.largest)
        products = sum(count(model, sketch.usual).products.values())
    parameters, frozen = (
        sum(math.prod(one.shape) for one in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    step = found.kept + LARGEST * found.largest + LAYER * found.layers
    written = 4 * parameters * (COPIES - 1)  # when weights are written, the gradients are gone
    slots = (2 if entry.optimizer in ("adam", "adamw") else 1) + (entry.ema > 0)
    examples, devices = len(data), entry.devices
    return Cost(
        parameters=parameters,
        flops=2 * products // sketch.usual[0][0],
        examples=examples,
        weights=4 * (parameters * (2 + slots) + frozen),
        step=max(step, written),
        devices=devices,
        data=data.row_bytes * examples,
        held=_tokens(examples, texts, devices) if texts else resident.held(data, input_spec["array"], devices),
    )


def check(data: Shards, input_spec: dict[str, Any], entry: Train, policy: Policy, where: str) -> Cost:
    """Returns what a training costs; prints a line if it may not fit into memory.

    Args:
        data: training examples.
        input_spec: the content of the model's input.json.
        entry: of train.
        policy: how it computes.
        where: what messages call the training.

    Raises:
        ConfigurationError: it needs more than there is, even if the estimate is a quarter too high; or ``estimate``'s.
        ServiceError: it needs more than others leave of it.
    """
    # The question for devices starts the backend, after which it is too late.
    backend.prepare(entry.devices, policy.threads, entry.deterministic)
    cost = estimate(data, input_spec, entry, policy.precision)
    needed, free, total, place = _room(cost)
    if needed <= free:
        return cost
    said = f"{where} needs about {_size(needed)} of memory{place}; {_size(free)} of {_size(total)} are free"
    advice = _advice(data, input_spec, entry, policy.precision, free)
    if needed <= free * SLACK or place:  # on a GPU the constants were never measured
        print(f"{said}: it may not fit. {advice}")
        return cost
    if needed <= total * SLACK:
        raise ServiceError(f"{said}. Run again when others have ended. {advice}")
    raise ConfigurationError(f"{said}. {advice}")


@contextmanager
def guarded(cost: Cost, where: str) -> Iterator[None]:
    """Turns what a library raises when memory ends into an error that says so.

    Raises:
        ServiceError: with what was expected, and what is there.
    """
    try:
        yield
    except Exception as error:
        if not room.OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        needed, free, total, place = _room(cost)
        raise ServiceError(
            f"{where} is out of memory ({type(error).__name__}): about {_size(needed)}{place} were expected; "
            f"{_size(free)} of {_size(total)} are free. Less is needed with a smaller batch, precision: bfloat16 or "
            "smaller sizes."
        ) from error


def _room(cost: Cost) -> tuple[int, int, int, str]:
    """Returns the bytes that a training needs, that are free, and that there are, and where if not in the machine."""
    if backend.devices()[0].startswith("cpu"):
        return cost.memory - cost.data, *room.available(), ""
    found = gpus.memory()[: cost.devices]
    free, total = map(min, zip(*found, strict=True)) if found else (sys.maxsize, sys.maxsize)  # not NVIDIA's
    return cost.weights + cost.step, free, total, " of the device"


def _advice(data: Shards, input_spec: dict[str, Any], entry: Train, precision: str, free: int) -> str:
    """Returns the smallest change of each kind with which it would fit, and what it would need then."""
    slow = "" if backend.precision("auto") == "bfloat16" else ", slow on this device,"
    batch, sizes = min(entry.batch, len(data)), entry.sizes
    widths = [sizes.get("width", 1.0) / part for part in PARTS]  # every architecture has it
    kinds: list[list[tuple[str, dict[str, Any], str]]] = [
        [(f"batch: {batch // part}", {"batch": batch // part}, precision) for part in PARTS if part <= batch],
        [(f"precision: bfloat16{slow}", {}, "bfloat16")],
        [(f"width: {width:.3g} in its sizes", {"sizes": sizes | {"width": width}}, precision) for width in widths],
    ]
    fitting = []
    for changes in kinds:
        for said, change, computing in changes:
            try:
                needed = _room(estimate(data, input_spec, entry.model_copy(update=change), computing))[0]
            except ConfigurationError:  # so narrow it cannot be built
                break
            if needed <= free:
                fitting.append(f"{said} (about {_size(needed)})")
                break
    if not fitting:
        return "Neither a smaller batch, nor precision: bfloat16, nor a smaller width is enough."
    return f"It would fit with {', or '.join(fitting)}."


def _tokens(examples: int, texts: Lengths, devices: int) -> int:
    """Returns the bytes of all texts as tokens, twice where TensorFlow holds them too."""
    flat = round(examples * TOKEN * sum(some.mean() for some, _ in texts.values()))
    return (flat + examples * ROW * len(texts)) * (2 if resident.fits(flat, devices) else 1)


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.0f} MiB"
