"""What a training will cost, before anything of it is allocated: operations, and memory.

The network is built without its weights and followed with the sizes of a batch, so that one of a terabyte is counted in
a tenth of a second. The numbers of ``estimate`` hold on every backend; the constants of memory were measured with
TensorFlow on a CPU (``benchmarks/cost.py``).
"""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
from keras import tree

from convoy.data.shards import Shards, spread
from convoy.data.vocabulary import MULTIPLE, Vocabulary
from convoy.errors import ConfigurationError, ServiceError
from convoy.model import backend
from stages.train.fit import fit, resident

MIB, GIB = 2**20, 2**30
BASE = 855 * MIB  # of a process with Python, TensorFlow and MLflow after a first step; half of it is their code
LAYER = 3 * MIB  # for each with a kernel: its part of the graph, forth and back, and the code compiled for it
LARGEST = 3  # tensors of the size of the largest that a step holds beside what it keeps: gradients, what kernels need
COPIES = 3  # of the weights that writing them takes: their bytes, the archive, the archive with other times
SLACK = 1.25  # how far the estimate may be off
SAMPLE = 1000  # texts whose lengths are looked at
TOKEN, ROW = 4, 8  # bytes of each token and of each text, see ``tokens.Ragged``
PARTS = (2, 4, 8, 16, 32, 64, 128)  # by what an advice divides batch and width

Lengths = dict[str, tuple[np.ndarray, np.ndarray]]  # see ``_lengths``

# Operations whose inputs, or outputs, a gradient is computed from; of others the gradient needs neither.
FROM_INPUTS = (
    "Conv", "DepthwiseConv", "SeparableConv", "Dense", "EinsumDense", "Matmul", "Einsum", "Multiply", "Divide",
    "TrueDivide", "Square", "Power", "Log", "Absolute", "BatchNormalization", "LayerNormalization",
    "GroupNormalization", "MaxPooling", "GlobalMaxPooling", "Maximum", "Minimum",
)  # fmt: skip
FROM_OUTPUTS = ("Exp", "Sqrt", "Softmax", "Sigmoid", "Tanh", "Relu", "ReLU", "MaxPooling", "GlobalMaxPooling")
OUT_OF_MEMORY = re.compile(r"MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|[Oo]ut ?[Oo]f ?[Mm]emory|allocate memory")


@dataclass(frozen=True)
class Count:
    """What was counted in a network, for one batch.

    Attributes:
        products: multiply-adds of each layer.
        kept: bytes of what the forward pass keeps for the backward pass.
        largest: bytes of the largest tensor.
        layers: how many have kernels.
    """

    products: dict[str, int]
    kept: int
    largest: int
    layers: int


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Attributes:
        parameters: trainable ones, those of auxiliary outputs too.
        flops: of the forward pass of one example, two for each multiply-add; of a text of average length.
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


def count(model: keras.Model, shapes: list[tuple[int, ...]]) -> Count:
    """Counts in any Functional model, for inputs of ``shapes``, the axis of the batch included.

    Multiply-adds are those of convolutions, dense layers and matrix products, as published tables count; what is done
    number by number - activations, normalisation, pooling - is left out. A layer of another kind with kernels (a
    recurrent one) counts them once for each place. Models within the model are entered.
    """
    products: dict[str, int] = {}
    kept: dict[Any, int] = {}
    largest = layers = 0
    alive = []  # so that no two tensors have one id

    def visit(operation: keras.Operation, given: list[keras.KerasTensor], made: list[keras.KerasTensor]) -> None:
        nonlocal largest, layers
        kind = type(operation).__name__
        alive.extend([*given, *made])
        largest = max([largest, *map(_bytes, made)])
        layers += bool(_kernels(operation))
        products[operation.name] = products.get(operation.name, 0) + _products(operation, given, made[0])
        activation = getattr(getattr(operation, "activation", None), "__name__", None)
        if kind.startswith(FROM_INPUTS):
            kept.update({id(one): _bytes(one) for one in given})
        if kind.startswith(FROM_OUTPUTS) or activation not in (None, "linear"):
            kept.update({id(one): _bytes(one) for one in made})
        if "Dropout" in kind:
            kept[id(made[0]), kind] = math.prod(made[0].shape)  # which were dropped, a byte each
        if "Normalization" in kind and _bytes(given[0]) < 4 * math.prod(given[0].shape):
            kept[id(given[0]), kind] = 4 * math.prod(given[0].shape)  # normalisation computes in float32

    _follow(model, _symbols(model, shapes), visit)
    return Count(products, sum(kept.values()), largest, layers)


def estimate(
    data: Shards,
    takes: dict[str, Any],
    *,
    architecture: str,
    sizes: dict[str, Any],
    batch: int,
    optimizer: str,
    ema: float,
    devices: int,
    precision: str,
    **_: Any,
) -> Cost:
    """Returns what a training costs; the arguments are those of ``loop.fit``, of which the others cost nothing.

    Raises:
        ConfigurationError: the architecture refuses the data or its sizes.
    """
    with _weightless(data, takes, architecture, sizes, batch, devices, precision) as (model, usual, longest, texts):
        found = count(model, longest)
        products = sum(count(model, usual).products.values())
    parameters, frozen = (
        sum(math.prod(one.shape) for one in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    step = found.kept + LARGEST * found.largest + LAYER * found.layers
    written = 4 * parameters * (COPIES - 1)  # when weights are written, the gradients are gone
    slots = (2 if optimizer in ("adam", "adamw") else 1) + (ema > 0)
    return Cost(
        parameters=parameters,
        flops=2 * products // usual[0][0],
        examples=len(data),
        weights=4 * (parameters * (2 + slots) + frozen),
        step=max(step, written),
        devices=devices,
        data=data.row_bytes * len(data),
        held=_tokens(len(data), texts, devices) if texts else resident.held(data, takes["array"], devices),
    )


def kernel_layers(
    data: Shards, takes: dict[str, Any], settings: dict[str, Any]
) -> list[tuple[keras.layers.Layer, tuple[int, ...]]]:
    """Returns the layers with kernels, without values, and the shapes of their inputs, the axis of the batch included.

    Texts are of average length, and of the longest. The arguments are as of ``check``.

    Raises:
        ConfigurationError: as of ``estimate``.
    """
    found = []

    def visit(operation: keras.Operation, given: list[keras.KerasTensor], _made: list[keras.KerasTensor]) -> None:
        if _kernels(operation):
            found.append((operation, given[0].shape))

    decides = {key: settings[key] for key in ("architecture", "sizes", "batch", "devices", "precision")}
    with _weightless(data, takes, **decides) as (model, *both, _):
        for shapes in both:
            _follow(model, _symbols(model, shapes), visit)
    return found


@contextmanager
def _weightless(
    data: Shards, takes: dict[str, Any], architecture: str, sizes: dict[str, Any], batch: int, devices: int,
    precision: str,
) -> Iterator[tuple[keras.Model, list[tuple[int, ...]], list[tuple[int, ...]], Lengths]]:  # fmt: skip
    """Gives an untrained network whose weights have no values, the shapes of its inputs: usual ones, the largest.

    They are of the part of a batch that one device has. Gives also the ``_lengths`` of the texts.
    """
    texts = _lengths(data, takes)
    keras.utils.clear_session(free_memory=False)
    with backend.computing_in(backend.precision(precision)), keras.StatelessScope(initialize_variables=False):
        model = fit.build(architecture, data, takes, sizes)
        share = max(1, -(-min(batch, len(data)) // devices))
        usual, longest = ([(share, *shape) for shape in shapes] for shapes in _shapes(data, takes, model, texts))
        yield model, usual, longest, texts
    keras.utils.clear_session(free_memory=False)  # which would else give the weights values, at its next chance


def check(data: Shards, takes: dict[str, Any], where: str, **settings: Any) -> Cost:
    """Returns what a training costs; prints a line if it may not fit into memory.

    Args:
        data: training examples.
        takes: what the model takes.
        where: what messages call the training.
        settings: arguments of ``loop.fit``.

    Raises:
        ConfigurationError: it needs more than there is, even if the estimate is a quarter too high; or ``estimate``'s.
        ServiceError: it needs more than others leave of it.
    """
    # The question for devices starts the backend, after which it is too late.
    backend.prepare(settings["devices"], settings["threads"], settings["deterministic"])
    cost = estimate(data, takes, **settings)
    needed, free, total, place = _room(cost)
    if needed <= free:
        return cost
    said = f"{where} needs about {_size(needed)} of memory{place}; {_size(free)} of {_size(total)} are free"
    advice = _advice(data, takes, settings, free)
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
        if not OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
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
        return cost.memory - cost.data, *available(), ""
    found = _gpus()[: cost.devices]
    free, total = map(min, zip(*found, strict=True)) if found else (sys.maxsize, sys.maxsize)  # not NVIDIA's
    return cost.weights + cost.step, free, total, " of the device"


def _advice(data: Shards, takes: dict[str, Any], settings: dict[str, Any], free: int) -> str:
    """Returns the smallest change of each kind with which it would fit, and what it would need then."""
    slow = "" if backend.precision("auto") == "bfloat16" else ", slow on this device,"
    batch, sizes = min(settings["batch"], len(data)), settings["sizes"]
    kinds: list[list[tuple[str, dict[str, Any]]]] = [
        [(f"batch: {batch // part}", {"batch": batch // part}) for part in PARTS if part <= batch],
        [(f"precision: bfloat16{slow}", {"precision": "bfloat16"})],
    ]
    widths = [sizes.get("width", 1.0) / part for part in PARTS]  # every architecture has it
    kinds.append([(f"width: {width:.3g} in its sizes", {"sizes": sizes | {"width": width}}) for width in widths])
    fitting = []
    for changes in kinds:
        for said, change in changes:
            try:
                needed = _room(estimate(data, takes, **settings | change))[0]
            except ConfigurationError:  # so narrow it cannot be built
                break
            if needed <= free:
                fitting.append(f"{said} (about {_size(needed)})")
                break
    if not fitting:
        return "Neither a smaller batch, nor precision: bfloat16, nor a smaller width is enough."
    return f"It would fit with {', or '.join(fitting)}."


def available(root: Path = Path("/")) -> tuple[int, int]:
    """Returns the bytes of memory that this process may have, what it has included, and those that there are in all.

    The least of what the machine and the control groups of the process allow; files that the system keeps in memory
    count as free.

    Args:
        root: of the file system; another one in tests.
    """
    machine = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    limits = [(machine.available + own, machine.total)]
    for folder, names in _groups(root):
        try:
            limit, used = (folder / names[0]).read_text().strip(), int((folder / names[1]).read_text())
            cached = re.search(rf"^{names[2]} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        except OSError:  # the root of a hierarchy has no limit
            continue
        if limit != "max":
            limits.append((int(limit) - used + int(cached[1] if cached else 0) + own, int(limit)))
    return max(0, min(free for free, _ in limits)), min(total for _, total in limits)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yields folders of control groups, version 2 and 1, with the names of limit, use and files in memory there."""
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        # In a container the path may be that of its host, and the limit stands at the top.
        for place in (folder, *folder.parents):
            yield place, names
            if place == top:
                break


def _gpus() -> list[tuple[int, int]]:
    """Returns (free, all) bytes of every NVIDIA GPU that this process may use."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.SubprocessError:  # an estimate ends no training
        return []
    rows = re.findall(r"^(\d+), *(\d+)$", done.stdout, re.MULTILINE)  # some say [N/A]
    return [(int(free) * MIB, int(total) * MIB) for free, total in rows]


def _shapes(data: Shards, takes: dict[str, Any], model: keras.Model, texts: Lengths) -> tuple[list[tuple], list[tuple]]:
    """Returns the shapes of the inputs of one example: of average length, and of the longest."""
    if not texts:
        return [data.shape(takes["array"])], [data.shape(takes["array"])]
    usual, longest = [], []
    for (column, both), one in zip(texts.items(), model.inputs, strict=True):
        # BEGIN is before a target.
        some, longer = (-(-(lengths + (column == "target")) // MULTIPLE) * MULTIPLE for lengths in both)
        fixed = one.shape[1]
        usual.append((fixed or round(some.mean()),))
        longest.append((fixed or int(max(some.max(), longer.max())),))
    return usual, longest


def _lengths(data: Shards, takes: dict[str, Any]) -> Lengths:
    """Returns of each column of texts how many tokens some have, and the longest; nothing for other examples."""
    found = {}
    for column in (side for side in ("text", "source", "target") if side in takes):
        known = Vocabulary.from_json(takes[column])
        chosen = spread(len(data), SAMPLE), np.argsort(data.text_bytes(column))[-SAMPLE // 10 :]
        some, longer = (known.encode(data.take(column, rows), takes["length"]).lengths for rows in chosen)
        found[column] = some, longer
    return found


def _tokens(examples: int, texts: Lengths, devices: int) -> int:
    """Returns the bytes of all texts as tokens, twice where TensorFlow holds them too."""
    flat = round(examples * TOKEN * sum(some.mean() for some, _ in texts.values()))
    return (flat + examples * ROW * len(texts)) * (2 if resident.fits(flat, devices) else 1)


def _symbols(model: keras.Model, shapes: list[tuple[int, ...]]) -> list[keras.KerasTensor]:
    return [keras.KerasTensor(shape, one.dtype) for shape, one in zip(shapes, model.inputs, strict=True)]


def _follow(model: keras.Model, inputs: list, visit: Callable[[keras.Operation, list, list], None]) -> list:
    """Sends the shapes of ``inputs`` through a model, and calls ``visit(operation, given, made)`` at each operation."""

    def step(operation: keras.Operation) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            given = [one for one in tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
            if isinstance(operation, keras.Model):
                made = _follow(operation, given, visit)
                return made if len(made) > 1 else made[0]
            with keras.StatelessScope(initialize_variables=False):
                made = operation.compute_output_spec(*args, **kwargs)
            visit(operation, given, tree.flatten(made))
            return made

        return apply

    return tree.flatten(model._run_through_graph(inputs, operation_fn=step))


def _products(operation: keras.Operation, given: list[keras.KerasTensor], made: keras.KerasTensor) -> int:
    """Returns the multiply-adds of one operation."""
    if type(operation).__name__ == "Matmul":
        return math.prod(made.shape) * given[0].shape[-1]
    # Each weight of a kernel is used once at each place: of the output, or of the input that a transposed one spreads.
    places = given[0] if "Transpose" in type(operation).__name__ and given else made
    return math.prod(places.shape[:-1]) * sum(math.prod(one.shape) for one in _kernels(operation))


def _kernels(operation: keras.Operation) -> list[keras.Variable]:
    return [one for one in getattr(operation, "weights", ()) if "kernel" in one.name]


def _bytes(one: keras.KerasTensor) -> int:
    return math.prod(one.shape) * {"bool": 1, "bfloat16": 2, "float16": 2, "int64": 8, "float64": 8}.get(one.dtype, 4)


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.0f} MiB"
