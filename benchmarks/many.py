"""Whether cost grows with the examples alone: ``python benchmarks/many.py [--sizes 10000 100000 1000000]``.

Pictures of 32x32 are generated - a bright bar at one of ten angles before a grey pattern -, written as IDX files, and
go through ingest, augment (one changed copy each), train (LeNet-5, one epoch) and evaluate, each a process of its own,
in a clone of HEAD. Without the search for near duplicates, whose cost grows with the square (``duplicates.py``).
Seconds are the journal's; memory is the largest that the processes of a stage had for themselves, without the shards
that they map, which the system takes back when it needs the space. A twentieth is validation, a tenth test. Prints
Markdown for RESULTS.md and draws benchmarks/many.png. Five minutes on 2 cores for a million, and 8 GB of disk.
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
from stages.record import measured

STAGES = ("ingest", "augment", "train", "evaluate")
BLOCK = 10_000
LOOK = 0.1  # seconds between two looks at the memory
PICTURE = Path(__file__).with_name("many.png")


def main() -> None:
    """Runs all stages on every size; prints the table and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--draw", type=Path, default=PICTURE, help="where the plot goes")
    arguments = parser.parse_args()
    found = {}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            found[size] = measure(Path(scratch, "convoy"), size)
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
    draw(found, arguments.draw)


def measure(clone: Path, size: int) -> dict:
    """Returns the seconds and MiB of each stage, and as ``speed`` the examples per second of the training."""
    subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
    shares = {"val": 0.05, "test": 0.1}
    entries = {
        "fetch": {"bars": {"path": "unused"}},
        "ingest": {"bars": shares | {"kind": "images", "size": [32, 32], "mode": "grey", "near_duplicates": False}},
        "augment": {"bars": {"copies": 1, "seed": 0, "shift": 2.0}},
        "train": {"lenet5": {"dataset": "bars", "architecture": "lenet5", "epochs": 1, "learning_rate": 2e-3}},
        "register": {"bars": {}},
    }
    YAML().dump(entries, clone / "params.yaml")
    write(clone / "data/raw/bars", size)
    memory = {}
    for stage in STAGES:
        name = "lenet5" if stage in ("train", "evaluate") else "bars"
        command = [sys.executable, "-m", "stages", stage, name]
        memory[stage] = run(command, clone)
    journal = map(json.loads, (clone / "data/journal.jsonl").read_text().splitlines())
    seconds = {line["stage"].split("@")[0]: line["seconds"] for line in journal}
    found = {stage: {"seconds": seconds[stage], "memory": memory[stage]} for stage in STAGES}
    facts = json.loads((clone / "data/train/bars/lenet5/run.json").read_text())
    return found | {"speed": measured(facts, clone)["examples_per_second"]}


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


def write(folder: Path, size: int) -> None:
    """Writes pictures and labels as IDX files, a block at a time."""
    folder.mkdir(parents=True)
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
