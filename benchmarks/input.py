"""How long a training step waits for its batch: ``python benchmarks/input.py [MODEL...]``, ten minutes on 2 cores.

For the models of params.yaml, on their own data in a clone of HEAD: milliseconds that gathering a batch takes alone;
those of a step as it is, its examples held by TensorFlow (``stages/train/resident.py``); of one whose batches are read
from the shards, by another thread and ahead of it; and of one whose batches lie ready in TensorFlow's memory.
Medians of three trainings of each, in turn. Then, of a batch of 128 pictures of 28x28 that are moved, turned, scaled:
CPU milliseconds in the compiled graph (``stages/train/augmentation.py``), and by the code of the stage ``augment``, as
workers would run it. Prints Markdown.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from ruamel.yaml import YAML

SECONDS = 40.0  # of the trainings of one model, about
CHANGES = {"shift": 1.5, "rotate": 10.0, "scale": 0.1}
REPEATS = 50


def main() -> None:
    """Measures each model in a process of its own, and the changes of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        waiting(arguments.one)
        return
    entries = YAML(typ="safe").load(ROOT / "params.yaml")["train"]
    chosen = arguments.models or list(entries)
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "convoy")
        subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
        targets = {f"augment@{entries[name]['dataset']}" for name in chosen}
        subprocess.run(["dvc", "repro", "--quiet", *targets], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        print("| model | batch | gathering one, ms | step, ms | read from shards | batches at hand |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in chosen:
            subprocess.run([sys.executable, "benchmarks/input.py", "--one", name], cwd=clone, check=True)
    changes()


def waiting(name: str) -> None:
    """Prints the row of one model."""
    from stages import compute, params
    from stages.entries import prepare
    from stages.train import loop, policy, resident
    from stages.train.train import fitting, opened

    class Ready(resident.Held):
        """Batches that were gathered in the first epoch, in whose order they stay."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.data = self.data.cache()

    _, arguments = prepare("train", name, params.read("train", name))
    data, val, takes = opened(name, arguments.pop("dataset"), arguments)
    compute.prepare()
    settings = fitting(arguments)
    settings |= policy.choose(name, data, takes, settings, worth=float("inf"))[0]
    made, as_is, holds = loop._batches, resident.Held, resident.holds
    gathering = []

    def batches(split: Any, *others: Any, **changes: Any) -> Any:
        found = made(split, *others, **changes)
        if changes["seed"] is not None:
            began = time.perf_counter()
            for number in range(len(found)):
                found[number]
            gathering.append((time.perf_counter() - began) / len(found))
        return found

    def step(kind: Any, held: Any, epochs: int) -> float:
        resident.Held, resident.holds = kind, held
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            result = loop.fit(data, val, takes, title=name, log=lambda *_: None, **settings | {"epochs": epochs})
        return settings["batch"] / result.examples_per_second

    loop._batches, began = batches, time.perf_counter()
    step(as_is, holds, 1)
    epochs = max(2, round(SECONDS / 9 / (time.perf_counter() - began)))
    rounds = [
        (step(as_is, holds, epochs), step(as_is, lambda *_: False, epochs), step(Ready, holds, epochs))
        for _ in range(3)
    ]
    cells = (f"{1000 * statistics.median(times):.2f}" for times in (gathering, *zip(*rounds, strict=True)))
    print(f"| {name} | {settings['batch']} | {' | '.join(cells)} |", flush=True)


def changes() -> None:
    """Prints what changing a batch of pictures costs."""
    from stages import compute
    from stages.augment import images
    from stages.augment.draws import Draws
    from stages.train.augmentation import RandomAffine

    compute.prepare()
    import tensorflow as tf

    pictures = np.random.default_rng(0).integers(0, 256, (128, 28, 28, 1), dtype=np.uint8)
    layer = RandomAffine(**CHANGES)
    graph = tf.function(lambda batch: layer(batch, training=True))
    batch = tf.constant(pictures)
    others = {"elastic": 0.0, "smoothness": 4.0, "flip": np.zeros(128, bool), "erase": 0.0, "noise": 0.0}

    def stage() -> None:
        images.change(pictures, Draws([str(number).encode() for number in range(128)]), **CHANGES, **others)

    print("\n| a batch changed by | CPU ms |\n|---|---|")
    for name, work in (("the graph", lambda: graph(batch)), ("the stage's code", stage)):
        work()
        began = time.process_time()
        for _ in range(REPEATS):
            work()
        print(f"| {name} | {1000 * (time.process_time() - began) / REPEATS:.1f} |")


if __name__ == "__main__":
    main()
