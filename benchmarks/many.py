"""Whether cost grows with the examples alone: ``python benchmarks/many.py [texts] [--sizes 10000 100000 1000000]``.

It generates pictures of 32x32, a bright bar at one of ten angles before a grey pattern, as IDX files. With ``texts`` it
generates sentences of 10 to 40 words as CSV; one word tells the class. They go through ingest, augment (one changed
copy each), train (LeNet-5 or a small text_cnn, one epoch) and evaluate, each a process of its own, in a clone of HEAD.
The search for near duplicates (``duplicates.py``) is off, because its cost grows with the square. Seconds are the
journal's. Memory is the peak of a stage's processes without the shards that they map: the system takes those back when
it needs the space. A line below the table compares a training's whole memory with the estimate. A twentieth is
validation, a tenth test. Prints Markdown for RESULTS.md and draws benchmarks/many.png or texts.png. A million pictures
take five minutes on 2 cores and 8 GB of disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil
from ruamel.yaml import YAML

mpl.use("agg")
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.accuracy import own_store
from convoy.tracking.outbox import measured

STAGES = ("ingest", "augment", "train", "evaluate")
BLOCK = 10_000
LOOK = 0.1  # seconds between two looks at the memory
WORDS = 30_000  # of the generated language; the n-th is 1/n as frequent as the first
PICTURES, TEXTS = "pictures", "texts"
INGEST = {PICTURES: {"kind": "images", "size": [32, 32], "mode": "grey"}, TEXTS: {"kind": "text"}}
AUGMENT = {PICTURES: {"shift": 2.0}, TEXTS: {"swap": 0.1}}
TRAIN = {
    PICTURES: {"architecture": "lenet5", "learning_rate": 2e-3},
    TEXTS: {"architecture": "text_cnn", "batch": 128, "sizes": {"embedding": 32, "maps": 32}},
}


def main() -> None:
    """Runs all stages on every size; prints the table and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=INGEST, default=PICTURES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--draw", type=Path, help="where the plot goes, instead")
    arguments = parser.parse_args()
    found = {}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            found[size] = measure(Path(scratch, "convoy"), arguments.kind, size)
        print(f"{size:,}: {found[size]}", flush=True)
    print(f"\n| stage | {' | '.join(f'{size:,}: s | us an example | MiB' for size in found)} |")
    print(f"|---|{'---|' * 3 * len(found)}")
    for stage in STAGES:
        cells = (
            f"{one[stage]['seconds']:.1f} | {1e6 * one[stage]['seconds'] / size:,.0f} | {one[stage]['memory']:,}"
            for size, one in found.items()
        )
        print(f"| {stage} | {' | '.join(cells)} |")
    print(f"| train, examples/s | {' | | '.join(format(one['speed'], ',') + ' |' for one in found.values())}")
    for size, one in found.items():
        print(f"{size:,}: the training needed {one['needed']:,} MiB, {one['expected']:,} were expected")
    draw(found, arguments.draw or Path(__file__).with_name("many.png" if arguments.kind == PICTURES else "texts.png"))


def measure(clone: Path, kind: str, size: int) -> dict:
    """Returns the seconds and MiB of each stage, and of the training ``speed``, in examples per second, and memory.

    Of its memory ``needed`` is all that its process had, and ``expected`` what ``plan`` says before, in MiB.
    """
    subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
    shares = {"val": 0.05, "test": 0.1}
    entries = {
        "fetch": {kind: {"path": "unused"}},
        "ingest": {kind: INGEST[kind] | shares | {"near_duplicates": False}},
        "augment": {kind: AUGMENT[kind] | {"copies": 1, "seed": 0}},
        "train": {"model": TRAIN[kind] | {"dataset": kind, "epochs": 1}},
        "register": {kind: {}},
    }
    YAML().dump(entries, clone / "params.yaml")
    folder = clone / "data/raw" / kind
    folder.mkdir(parents=True)
    {PICTURES: write_pictures, TEXTS: write_texts}[kind](folder, size)
    memory = {}
    for stage in STAGES:
        if stage == "train":
            said = subprocess.check_output([sys.executable, "-m", "flows", "cost", "model"], cwd=clone, text=True)
            expected = json.loads(said.splitlines()[-1])["memory"]
        name = "model" if stage in ("train", "evaluate") else kind
        command = [sys.executable, "-m", "stages", stage, name]
        memory[stage] = run(command, clone)
    journal = map(json.loads, (clone / "data/journal.jsonl").read_text().splitlines())
    lines = {line["stage"].split("@")[0]: line for line in journal}
    found = {stage: {"seconds": lines[stage]["seconds"], "memory": memory[stage]} for stage in STAGES}
    facts = json.loads((clone / "data/train" / kind / "model/run.json").read_text())
    needed = {"needed": lines["train"]["memory"], "expected": round(expected / 2**20)}
    return found | needed | {"speed": measured(facts, clone)["examples_per_second"]}


def run(command: list[str], clone: Path) -> int:
    """Runs a stage; returns the largest memory, in MiB, that it and the processes it starts had for themselves."""
    largest = 0
    with psutil.Popen(command, cwd=clone, env=own_store(), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            own = 0
            with suppress(psutil.NoSuchProcess):  # one of them just ended
                for one in (process, *process.children(recursive=True)):
                    info = one.memory_info()
                    own += info.rss - info.shared
            largest = max(largest, own)
            time.sleep(LOOK)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return round(largest / 2**20)


def write_pictures(folder: Path, size: int) -> None:
    """Writes pictures and labels as IDX files, a block at a time."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-15.5:16.5, -15.5:16.5].astype(np.float32)
    with (
        (folder / "train-images-idx3-ubyte").open("wb") as images,
        (folder / "train-labels-idx1-ubyte").open("wb") as labels,
    ):
        images.write(np.array([0x803, size, 32, 32], ">i4").tobytes())
        labels.write(np.array([0x801, size], ">i4").tobytes())
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            digits = rng.integers(0, 10, count)
            angles = (digits + rng.uniform(-0.3, 0.3, count)) * np.pi / 10
            x, y = rng.uniform(-5, 5, (2, count, 1, 1)).astype(np.float32)
            cosine, sine = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
            distance = np.abs((columns - x) * sine - (rows - y) * cosine)
            pictures = rng.integers(0, 100, (count, 8, 8), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
            pictures[distance < 1.5] += 150
            images.write(pictures.tobytes())
            labels.write(digits.astype(np.uint8).tobytes())


def write_texts(folder: Path, size: int) -> None:
    """Writes sentences and their classes as CSV."""
    rng = np.random.default_rng(0)
    words = np.array([f"{number:x}".translate(str.maketrans("0123456789", "ghijklmnop")) for number in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    with (folder / "sentences.csv").open("w") as file:
        file.write("text,label\n")
        for start in range(0, size, BLOCK):
            lengths = rng.integers(10, 41, min(BLOCK, size - start))
            drawn = np.split(rng.choice(words, lengths.sum(), p=frequency / frequency.sum()), np.cumsum(lengths)[:-1])
            for sentence, label in zip(drawn, rng.integers(0, 10, len(lengths)), strict=True):
                sentence[rng.integers(len(sentence))] = f"class{'abcdefghij'[label]}"
                file.write(f"{' '.join(sentence)},{label}\n")


def draw(found: dict[int, dict], path: Path) -> None:
    """Draws microseconds an example and memory over the number of examples."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sizes = list(found)
    for stage in STAGES:
        left.plot(sizes, [1e6 * one[stage]["seconds"] / size for size, one in found.items()], "o-", label=stage)
        right.plot(sizes, [one[stage]["memory"] for one in found.values()], "o-", label=stage)
    for axes, title in ((left, "microseconds an example"), (right, "peak memory of its own, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="examples", title=title)
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
