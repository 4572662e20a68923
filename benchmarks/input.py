"""How long a training step waits for its batch: ``python benchmarks/input.py [MODEL...]``, ten minutes on 2 cores.

For the models of params.yaml, on their own data in a clone of HEAD: milliseconds that gathering a batch takes alone;
those of a step as it is, its examples held by TensorFlow (``stages/train/fit/resident.py``); of one whose batches are
read from the shards, by another thread and ahead of it; and of one whose batches lie ready in TensorFlow's memory.
Medians of three trainings of each, in turn, every one in a process of its own: a thread of Python that fed one training
slows the next. Then, of a batch of 128 pictures of 28x28 that are moved, turned, scaled:
CPU milliseconds in the compiled graph (``stages/train/fit/augmentation.py``), and by the code of the stage ``augment``,
as workers would run it. Prints Markdown.
"""

import argparse
import json
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

WAYS = ("held", "shards", "ready")
ROUNDS, EPOCHS = 3, 6  # the first epoch, in which the graph is built, is not counted
CHANGES = {"shift": 1.5, "rotate": 10.0, "scale": 0.1}
REPEATS = 50


def main() -> None:
    """Measures each model in a process of its own, and the changes of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        trained(*arguments.one)
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
            found = {way: [] for way in WAYS}
            for _ in range(ROUNDS):
                for way in WAYS:
                    command = [sys.executable, "benchmarks/input.py", "--one", name, way]
                    done = subprocess.run(command, cwd=clone, check=True, stdout=subprocess.PIPE, text=True)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            steps = [statistics.median(one["step"] for one in found[way]) for way in WAYS]
            gathering = statistics.median(one["gathering"] for ones in found.values() for one in ones)
            cells = " | ".join(f"{1000 * seconds:.2f}" for seconds in (gathering, *steps))
            print(f"| {name} | {found['held'][0]['batch']} | {cells} |", flush=True)
    changes()


def trained(name: str, way: str) -> None:
    """Prints the seconds of a step and of gathering a batch, as JSON."""
    from convoy import params
    from stages.check import prepare
    from stages.train.fit import fit, resident
    from stages.train.fit.input_spec import open_inputs
    from stages.train.speed import policy

    class Ready(resident.Held):
        """Batches that were gathered in the first epoch, in whose order they stay."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.data = self.data.cache()

    entry = prepare("train", name, params.read("train", name) | {"epochs": EPOCHS})
    data, val, input_spec = open_inputs(name, entry)
    chosen, *_ = policy.choose_checked(name, name, data, input_spec, entry, worth=float("inf"))
    made, gathering = fit.make_batches, []

    def batches(*given: Any) -> Any:
        found, training = made(*given), given[-1]
        if training:
            began = time.perf_counter()
            for number in range(len(found)):
                found[number]
            gathering.append((time.perf_counter() - began) / len(found))
        return found

    fit.make_batches = batches
    if way == "shards":
        resident.holds = lambda *_: False
    elif way == "ready":
        resident.Held = Ready
    seconds = []  # of the training until the end of each epoch, without validation

    def log(row: dict[str, float], epoch: int) -> None:
        seconds.append(epoch * len(data) / row["examples_per_second"])

    fit.fit(data, val, input_spec, entry, chosen, title=name, log=log)
    step = (seconds[-1] - seconds[0]) / (EPOCHS - 1) * entry.batch / len(data)
    print(json.dumps({"step": step, "gathering": gathering[0], "batch": entry.batch}))


def changes() -> None:
    """Prints what changing a batch of pictures costs."""
    from convoy.model import backend
    from stages.augment import images
    from stages.augment.draws import Draws
    from stages.train.fit.augmentation import RandomAffine

    backend.prepare()
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
