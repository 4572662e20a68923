"""What this machine can do at most, and which part of it a training step of each architecture reaches.

Usage: ``python benchmarks/limits.py``; about five minutes on 2 cores, with nothing else running. Rates of matrix
products and convolutions, forth alone and with both gradients, in float32 and bfloat16, and of moving memory: of each
the best size's median. Then the networks of params.yaml, by ``train_on_batch``, in float32 and, where the processor has
it, bfloat16: operations are those of ``stages/train/speed/cost.py``, times three, since the way back has two products
for each of the way forth. Prints Markdown.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import keras
import numpy as np
import tensorflow as tf

from convoy.model import backend
from stages.train.entry import Train
from stages.train.fit import optimisation
from stages.train.speed.count import count
from stages.train.speed.rates import FLOPS_PER_STEP

SECONDS = 1.5  # of one measurement, in ROUNDS parts
ROUNDS = 5
SQUARES = (512, 1024, 2048)  # sides of matrices
MAPS = ((64, 56, 64), (64, 28, 128), (64, 14, 256), (128, 32, 64))  # batch, side, maps of convolutions of 3x3
MOVED = 2**26  # numbers of each of three arrays, 256 MiB in float32
CLASSES, WORDS = 10, 4000
# Entry of params.yaml: its architecture, what its data gives it, and the shape of an example.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    **{
        name: (name, {"input_shape": (32, 32, 1), "classes": CLASSES}, (32, 32, 1))
        for name in ("lenet5", "plain_cnn", "alexnet", "googlenet", "resnet")
    },
    "docs_text_cnn": ("text_cnn", {"words": WORDS, "classes": CLASSES}, (24,)),
    "docs_char_cnn": ("char_cnn", {"words": 70, "classes": CLASSES, "length": 123}, (123,)),
    "numbers_conv_seq2seq": ("conv_seq2seq", {"source_words": 400, "target_words": 400, "length": 32}, (16,)),
    "clips_conv3d": ("conv3d", {"input_shape": (8, 16, 16, 1), "classes": CLASSES}, (8, 16, 16, 1)),
}


def rate(work: Callable[[], Any], amount: float) -> float:
    """Returns ``amount`` per second of ``work``: the median of ROUNDS parts, after a first call that is not counted."""
    work()
    began = time.perf_counter()
    work()
    times = max(1, round(SECONDS / ROUNDS / (time.perf_counter() - began)))
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        found.append(amount * times / (time.perf_counter() - began))
    return statistics.median(found)


def products(dtype: str) -> float:
    """Returns the operations per second of the best matrix product."""
    found = []
    for side in SQUARES:
        a, b = (tf.cast(tf.random.normal((side, side)), dtype) for _ in range(2))
        found.append(rate(tf.function(lambda a=a, b=b: tf.reduce_max(a @ b)), 2 * side**3))
    return max(found)


def convolutions(dtype: str, back: bool) -> float:
    """Returns the operations per second of the best convolution; ``back``: with the gradients of picture and kernel."""
    found = []
    for batch, side, maps in MAPS:
        x = tf.cast(tf.random.normal((batch, side, side, maps)), dtype)
        kernel = tf.cast(tf.random.normal((3, 3, maps, maps)), dtype)

        def forth(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
            return tf.nn.conv2d(x, kernel, 1, "SAME")

        def all_of_it(x: tf.Tensor = x, kernel: tf.Tensor = kernel) -> Any:
            if not back:
                return tf.reduce_max(forth(x, kernel))
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                value = tf.reduce_sum(forth(x, kernel))
            # The value too: what nobody asks for is not computed.
            return value, *(tf.reduce_max(one) for one in tape.gradient(value, [x, kernel]))

        operations = 2 * batch * side**2 * 9 * maps**2 * (FLOPS_PER_STEP if back else 1)
        found.append(rate(tf.function(all_of_it), operations))
    return max(found)


def bandwidth() -> float:
    """Returns the bytes per second, read and written, of adding two arrays that no cache holds."""
    a, b = (tf.random.normal((MOVED,)) for _ in range(2))
    return rate(tf.function(lambda: a + b), 3 * 4 * MOVED)


def step(name: str, entry: dict[str, Any], precision: str) -> tuple[int, float, float]:
    """Returns the batch, examples per second, and operations per second of a network's training steps."""
    architecture, given, shape = NETWORKS[name]
    module = import_module(f"stages.train.architectures.{architecture}")
    batch, sizes = entry.get("batch", getattr(module, "PRESET", {}).get("batch", 128)), entry.get("sizes", {})
    heads = getattr(module, "LOSS_WEIGHTS", {})
    with backend.computing_in(precision):
        model = module.build(**given, **sizes, **({"heads": True} if heads else {}))
    rng = np.random.default_rng(0)
    if len(shape) > 1:
        x = rng.integers(0, 256, (batch, *shape), dtype=np.uint8)
    else:
        known = given.get("words", given.get("source_words"))
        x = [rng.integers(2, known, (batch, *shape), dtype=np.int32) for _ in model.inputs]
        x = x if len(x) > 1 else x[0]
    y: Any = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, batch)]
    if architecture == "conv_seq2seq":
        y, loss = rng.integers(2, 400, (batch, *shape)), optimisation.TokenCrossentropy(0.1)
    else:
        loss = "categorical_crossentropy"
    named = {"optimizer": entry.get("optimizer", "adam"), "epochs": 1, "learning_rate": 1e-3}
    optimizer = optimisation.make_optimizer(Train(dataset=name, architecture=architecture, **named), 1e-3)
    model.compile(optimizer, dict.fromkeys(heads, loss) if heads else loss, jit_compile=backend.compilation())
    y = dict.fromkeys(heads, y) if heads else y
    shapes = [(batch, *shape) for _ in model.inputs]
    operations = FLOPS_PER_STEP * 2 * sum(count(model, shapes).products.values())
    with backend.fused_normalisation():  # as in trainings; the graph of the step is built here
        seconds = 1 / rate(lambda: model.train_on_batch(x, y), 1.0)
    return batch, batch / seconds, operations / seconds


def main() -> None:
    """Measures and prints both tables."""
    from ruamel.yaml import YAML

    entries = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["train"]
    kinds, fast = ("float32", "bfloat16"), backend.precision("auto")
    print(f"{os.cpu_count()} cores; {', '.join(backend.devices())}; auto is {fast}\n")
    print(f"| limit | {' | '.join(kinds)} |\n|---|---|---|")
    limits = {}
    for title, found in (
        ("matrix products, GFLOP/s", products),
        ("convolutions, GFLOP/s", lambda kind: convolutions(kind, back=False)),
        ("convolutions with both gradients, GFLOP/s", lambda kind: convolutions(kind, back=True)),
    ):
        limits[title] = {kind: found(kind) for kind in kinds}
        print(f"| {title} | {' | '.join(f'{value / 1e9:,.0f}' for value in limits[title].values())} |", flush=True)
    print(f"| memory, GB/s read and written | {bandwidth() / 1e9:.1f} | |\n")
    print("| model | precision | batch | examples/s | GFLOP/s | of matrix products | of convolutions, both ways |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        for kind in dict.fromkeys(("float32", fast)):
            keras.utils.clear_session()
            batch, examples, operations = step(name, entries[name], kind)
            first, _, both = (limits[title][kind] for title in limits)
            row = (name, kind, batch, f"{examples:,.0f}", f"{operations / 1e9:,.1f}")
            print(f"| {' | '.join(map(str, row))} | {operations / first:.0%} | {operations / both:.0%} |", flush=True)


if __name__ == "__main__":
    main()
