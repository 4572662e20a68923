"""The training loop on JAX and torch: ``python -m benchmarks.backends FOLDER [--fashion FOLDER]``, best with a GPU.

Needs Keras, the backend, numpy, pandas, filelock, rich and ruamel.yaml, and none of TensorFlow, MLflow, DVC and
Prefect. Each part is a process of its own; what it measured is in FOLDER/results.jsonl at once, so that a part that
fails or runs out of time costs only itself:

- the picture models of params.yaml, as they are, on random 32x32 pictures: images/s, milliseconds per step, peak memory
  and mean utilisation of the device, in float32 and bfloat16;
- AlexNet, GoogLeNet and ResNet-50 as published, on random 224x224 pictures;
- a ResNet-20 by the recipe of He et al. 2015, section 4.2, on Fashion-MNIST (--fashion: the folder of its IDX files):
  test accuracy and seconds.

Trains through ``fit.fit``, validation and all, so that reading, sending and checking are in the numbers. On JAX each
program is compiled beforehand, several at a time; what remains is the time that a training takes. Parts begin as long
as --seconds last. Prints the table of FOLDER/results.md, for RESULTS.md.
"""

import argparse
import contextlib
import dataclasses
import gzip
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from convoy.data.shards import Shards, write_shards

# What train() takes where an entry says nothing. It is repeated, as the schema in train.py needs pydantic; the rate is
# constant, so that a program depends on no number of steps and can be compiled beforehand.
DEFAULTS = {"dataset": "random", "schedule": "constant", "steps_per_execution": 1}
# Memory rises from each to the next, so that the peak of the process is that of the last one.
SETTINGS = [(128, "bfloat16"), (128, "float32"), (512, "bfloat16"), (512, "float32")]
FULL_SETTINGS = [(64, "bfloat16"), (64, "float32"), (256, "bfloat16")]
FULL = {"alexnet": {}, "googlenet": {}, "resnet": {"depth": 50}}
RATE = 1e-4  # at which none of them diverges on noise
RECIPE = DEFAULTS | {
    "architecture": "resnet", "sizes": {"stem": "cifar", "depth": 20}, "batch": 128, "optimizer": "sgd",
    "learning_rate": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "warmup": 0.5, "precision": "float32",
}  # fmt: skip
COPIES, EPOCHS = 4, 8  # moved and mirrored versions of each picture, and passes over all of them: 32 of the pictures
TOGETHER = 8  # programs compiled at a time
LONGEST, LONGEST_TOGETHER = 140, 120  # seconds of one part, and of all that is compiled beforehand


@dataclasses.dataclass(frozen=True)
class Part:
    """What one process does.

    Attributes:
        backend: jax, torch or tensorflow.
        kind: ``small``, ``full`` or ``recipe``.
        model: a picture model of params.yaml, or of FULL.
        settings: (batch, precision) of each training.
        warm: only one step of each, so that the compiler's work is stored.
    """

    backend: str
    kind: str
    model: str
    settings: list
    warm: bool = False


def main() -> None:
    """Runs all parts; about five minutes for JAX and torch on one H100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results.jsonl, results.md and log.txt go")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's IDX files; without it no recipe")
    parser.add_argument("--backends", nargs="+", default=["jax", "torch"])
    parser.add_argument("--models", nargs="+", help="only these, e.g. lenet5 resnet")
    parser.add_argument("--seconds", type=float, default=300, help="after which no part begins")
    parser.add_argument("--tiny", action="store_true", help="a few steps of each, to try the command")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run(Part(**json.loads(arguments.part)), arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    backends = [name for name in arguments.backends if importlib.util.find_spec(name)]
    if not backends:
        sys.exit(f"none of the backends {', '.join(arguments.backends)} is installed")
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # what is in use is what is needed
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CONVOY_SCRATCH": scratch,
        }
        prepare(Path(scratch), arguments)
        queue = parts(backends, arguments)
        if "jax" in backends:
            compiled = [
                dataclasses.replace(part, settings=[setting], warm=True)
                for part in sorted(queue, key=lambda part: part.model != "googlenet")  # the longest first
                if part.backend == "jax" and part.kind != "recipe"
                for setting in part.settings
            ]
            started = time.monotonic()
            with ThreadPoolExecutor(min(TOGETHER, os.cpu_count() or 1)) as pool:
                until = min(deadline, started + LONGEST_TOGETHER)
                list(pool.map(lambda part: begin(part, until, arguments), compiled))
            print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
        for part in queue:
            started = time.monotonic()
            said = begin(part, deadline, arguments)
            print(f"{part.backend} {part.kind} {part.model}: {said}, {time.monotonic() - started:.0f} s", flush=True)
    text = table(arguments.folder)
    (arguments.folder / "results.md").write_text(text, encoding="utf-8")
    print(text)


def parts(backends: list[str], arguments: argparse.Namespace) -> list[Part]:
    """Returns what there is to measure, the most wanted first."""
    small = [name for name, entry in entries().items() if entry["dataset"] == "digits"]
    settings, full = (SETTINGS, FULL_SETTINGS) if not arguments.tiny else ([(16, "bfloat16"), (16, "float32")],) * 2
    found = []
    for backend in backends:
        found += [Part(backend, "small", name, settings) for name in small]
        if backend == backends[0] and arguments.fashion:
            found.append(Part(backend, "recipe", "resnet", []))
    found += [Part(backend, "full", name, full) for backend in backends for name in FULL]
    return [part for part in found if not arguments.models or part.model in arguments.models]


def entries() -> dict[str, dict[str, Any]]:
    """Returns the entries of the section ``train`` of params.yaml."""
    return YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))["train"]


def begin(part: Part, deadline: float, arguments: argparse.Namespace) -> str:
    """Runs a part in a process of its own; returns how it ended."""
    left = min(deadline - time.monotonic(), LONGEST)
    if left <= 0:
        return "no time left"
    words = [sys.executable, "-m", "benchmarks.backends", str(arguments.folder.resolve())]
    words += ["--part", json.dumps(dataclasses.asdict(part))]
    words += ["--tiny"] if arguments.tiny else []
    words += ["--fashion", str(arguments.fashion.resolve())] if arguments.fashion else []
    environment = os.environ | {"KERAS_BACKEND": part.backend}
    with (arguments.folder / "log.txt").open("a", encoding="utf-8") as log:
        try:
            done = subprocess.run(words, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return "out of time"
    return f"exit {done.returncode}" if done.returncode else "done"


def prepare(scratch: Path, arguments: argparse.Namespace) -> None:
    """Writes the shards that the parts read."""
    rng = np.random.default_rng(0)
    small, full = (32, 16) if arguments.tiny else (400 * 128, 4096)
    for name, shape, classes, count in (("small", (32, 32, 1), 10, small), ("full", (224, 224, 3), 1000, full)):
        blocks = (
            {
                "image": np.frombuffer(rng.bytes(rows * int(np.prod(shape))), np.uint8).reshape(rows, *shape),
                "label": rng.integers(0, classes, rows),
            }
            for rows in [min(256, count)] * (count // min(256, count))
        )
        write_shards(scratch / name, blocks)
    if arguments.fashion:
        (train, labels), test = (read_idx(arguments.fashion, split) for split in ("train", "t10k"))
        order = rng.permutation(len(train))
        if arguments.tiny:
            order, test = order[:132], tuple(array[:128] for array in test)
        held = len(order) // 12  # 5,000 of 60,000
        write_shards(scratch / "fashion/val", [{"image": train[order[:held]], "label": labels[order[:held]]}])
        write_shards(scratch / "fashion/test", [{"image": test[0], "label": test[1]}])
        rows = order[held:]
        copies = ({"image": moved(train[rows], rng), "label": labels[rows]} for _ in range(COPIES))
        write_shards(scratch / "fashion/train", copies)


def read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pictures, uint8 (n, 28, 28, 1), and labels of IDX files."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{split}-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int64)


def moved(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a window of each picture, filled up with 4 zeros on every side, and every second one mirrored.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    filled = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(filled, images.shape[1:3], axis=(1, 2))  # (n, 9, 9, c, h, w)
    row, column = rng.integers(0, 9, (2, len(images)))
    found = np.moveaxis(windows[np.arange(len(images)), row, column], 1, -1)
    mirrored = rng.random(len(images)) < 0.5
    found[mirrored] = found[mirrored, :, ::-1]
    return np.ascontiguousarray(found)


def run(part: Part, arguments: argparse.Namespace) -> None:
    """Measures one part in this process and adds a line to results.jsonl for each of its trainings."""
    import keras

    scratch, failed = Path(os.environ["CONVOY_SCRATCH"]), None
    for batch, precision in part.settings or [(RECIPE["batch"], RECIPE["precision"])]:
        found = {"backend": part.backend, "kind": part.kind, "model": part.model, "batch": batch}
        try:
            if part.kind == "recipe":
                found |= recipe(scratch, arguments.tiny)
            else:
                found |= speed(part, scratch, batch, precision, arguments.tiny)
        except Exception as error:  # the next setting may do better
            failed = error
            found |= {"precision": precision, "error": f"{type(error).__name__}: {error}"[:300]}
            print(found, flush=True)
        if not part.warm:
            with (arguments.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(found | environment(keras)) + "\n")
    if failed:
        raise failed


def environment(keras: Any) -> dict[str, Any]:
    """Returns what a measurement ran on."""
    from convoy.model import backend as compute

    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    with nvml() as device:
        name = device.name if device else f"{os.cpu_count()} CPU cores"
    libraries = {"keras": keras.__version__, backend: module.__version__, "python": platform.python_version()}
    return {"device": name, "devices": compute.devices(), "libraries": libraries}


def speed(part: Part, scratch: Path, batch: int, precision: str, tiny: bool) -> dict[str, Any]:
    """Trains two epochs on random pictures; the second is the one that utilisation is measured in."""
    from convoy.model import backend as compute
    from stages.train.entry import Policy, Train
    from stages.train.fit import fit

    shards = Shards(scratch / part.kind, verify=False)
    eager = part.backend == "torch"  # and takes no time to compile, but ten times as long for a small step
    steps = 2 if tiny else 1 if part.warm else (100 if eager else 400) if part.kind == "small" else 32
    rows, check = Rows(shards, min(len(shards) // batch, steps) * batch), Rows(shards, batch)
    if part.kind == "small":
        own = {key: value for key, value in entries()[part.model].items() if key in ("sizes", "optimizer")}
        entry = DEFAULTS | {"architecture": part.model} | own
    else:
        entry = DEFAULTS | {"architecture": part.model, "sizes": FULL[part.model]}
    entry |= {"learning_rate": RATE, "batch": batch, "precision": precision, "epochs": 1 if part.warm else 2}
    settings = Train(**entry)
    policy = Policy(precision, compute.compilation(), 1, None)
    takes = {"kind": "images", "array": "image", "classes": list(range(1000 if part.kind == "full" else 10))}
    with Utilisation() as busy:
        started = time.monotonic()
        result = fit.fit(
            rows, check, takes, settings, policy, title=part.model, log=lambda _, epoch: busy.measure(epoch == 1)
        )
        seconds = time.monotonic() - started
    if part.warm:
        return {}
    return {
        "precision": precision,
        "parameters": result.parameters,
        "images_per_second": result.examples_per_second,
        "step_ms": 1000 * batch / result.examples_per_second,
        "peak_bytes": compute.peak_memory(),
        "utilisation": busy.mean,
        "seconds": seconds,
    }


def recipe(scratch: Path, tiny: bool) -> dict[str, Any]:
    """Trains the ResNet-20 on Fashion-MNIST and tests it once."""
    from convoy.model import backend as compute
    from stages.train.entry import Policy, Train
    from stages.train.fit import fit

    splits = {name: Shards(scratch / "fashion" / name) for name in ("train", "val", "test")}
    takes = {"kind": "images", "array": "image", "classes": list(range(10))}
    epochs = 1 if tiny else EPOCHS
    with Utilisation() as busy:
        started = time.monotonic()
        result = fit.fit(
            splits["train"], splits["val"], takes, Train(**RECIPE, epochs=epochs),
            Policy(RECIPE["precision"], compute.compilation(), 1, None), title="resnet20",
            log=lambda _, epoch: busy.measure(epoch < epochs),
        )  # fmt: skip
        seconds = time.monotonic() - started
    test = splits["test"][:]
    answers = result.model.predict(test["image"], batch_size=500, verbose=0).argmax(axis=1)
    return {
        "precision": RECIPE["precision"],
        "parameters": result.parameters,
        "images_per_second": result.examples_per_second,
        "step_ms": 1000 * RECIPE["batch"] / result.examples_per_second,
        "peak_bytes": compute.peak_memory(),
        "utilisation": busy.mean,
        "seconds": seconds,
        "passes": epochs * COPIES,
        "test_accuracy": float(np.mean(answers == test["label"])),
        "test_examples": len(answers),
        "val_accuracy": result.history["val_accuracy"].round(4).tolist(),
    }


class Rows(Shards):
    """The first ``count`` examples of shards that are open already."""

    def __init__(self, shards: Shards, count: int) -> None:
        vars(self).update(vars(shards))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> np.ndarray:
        """Returns one array whole."""
        return super().column(name)[: self._count]


@dataclasses.dataclass
class Device:
    """An NVIDIA GPU as its driver sees it."""

    name: str
    handle: Any
    library: Any


@contextlib.contextmanager
def nvml() -> Iterator[Device | None]:
    """Gives the first GPU, if there is one and nvidia-ml-py is installed."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = pynvml.nvmlDeviceGetName(handle)
    except Exception:  # no library, no driver, no device: each has an error of its own
        yield None
        return
    yield Device(name, handle, pynvml)


class Utilisation:
    """Asks the driver ten times a second which share of the last moments the GPU was at work, while told to."""

    def __init__(self) -> None:
        self._shares: list[int] = []
        self._measuring, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> "Utilisation":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def mean(self) -> float | None:
        """Mean share, 0 to 1; None where nothing could be asked."""
        return float(np.mean(self._shares)) / 100 if self._shares else None

    def measure(self, on: bool) -> None:
        """Begins or stops."""
        (self._measuring.set if on else self._measuring.clear)()

    def _ask(self) -> None:
        with nvml() as device:
            while device and not self._ended.wait(0.1):
                if self._measuring.is_set():
                    try:
                        self._shares.append(device.library.nvmlDeviceGetUtilizationRates(device.handle).gpu)
                    except Exception:  # a driver in a container may not tell
                        return


def table(folder: Path) -> str:
    """Returns what results.jsonl says as tables."""
    file = folder / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    text = ["| backend | pictures | model | batch | precision | images/s | step, ms | peak, GiB | GPU at work |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        start = f"| {row['backend']} | {row['kind']} | {row['model']} | {row['batch']} | {row['precision']} | "
        if "error" in row:
            text.append(f"{start}{row['error'].splitlines()[0]} | | | |")
            continue
        peak = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "-"
        busy = "-" if row["utilisation"] is None else f"{row['utilisation']:.0%}"
        text.append(f"{start}{row['images_per_second']:,.0f} | {row['step_ms']:.2f} | {peak} | {busy} |")
    for row in rows:
        if "test_accuracy" in row:
            text += ["", f"ResNet-20 on Fashion-MNIST, {row['backend']}, {row['precision']}: test accuracy "
                     f"{row['test_accuracy']:.2%} of {row['test_examples']:,} after {row['passes']} passes in "
                     f"{row['seconds']:.0f} s."]  # fmt: skip
    if rows:
        text += ["", f"{rows[0]['device']}; " + "; ".join(sorted({str(row["libraries"]) for row in rows}))]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
