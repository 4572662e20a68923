"""Ingest beside bare Pillow and CleanVision, what 1 % of new files costs, memory at 1x and 10x, and three executors.

Usage: ``make BENCHMARKS=1 setup``, then ``python benchmarks/ingest.py [rates|edits|memory|workers]`` with
CONVOY_DATASETS set. Without a word all four. Prints Markdown tables. Data: the 1,069 photos of caltech101-10, and a
folder of PNG files made of MNIST's 60,000 training pictures. All in one run, interleaved, medians.
"""

import contextlib
import gzip
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
if __name__ == "__main__":  # the workers import this file, but not convoy's own command
    import psutil

    from convoy.machine import workers
    from stages.augment.augment import augment
    from stages.augment.entry import Augment
    from stages.ingest.entry import Ingest
    from stages.ingest.ingest import ingest

DATASETS = Path(os.environ.get("CONVOY_DATASETS", ""))
OPTIONS = {
    "photos": {"kind": "images", "size": (64, 64), "mode": "colour"},
    "digits": {"kind": "images", "size": (28, 28), "mode": "grey"},
}
CHANGES = {"copies": 3, "seed": 1, "shift": 2.5, "rotate": 12, "scale": 0.12, "elastic": 0.8, "erase": 0.05, "noise": 6}


def make(digits: int) -> None:
    """Writes data/raw/photos and data/raw/digits."""
    shutil.copytree(DATASETS / "caltech101-10", "data/raw/photos")
    pixels = gzip.decompress((DATASETS / "mnist/train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((DATASETS / "mnist/train-labels-idx1-ubyte.gz").read_bytes())[8:]
    pictures = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
    for label in range(10):
        Path("data/raw/digits", str(label)).mkdir(parents=True)
    for number in range(digits):
        Image.fromarray(pictures[number]).save(f"data/raw/digits/{labels[number]}/{number:05d}.png")


def larger(name: str, times: int, size: tuple[int, int] = (320, 240)) -> None:
    """Writes data/raw/<name>: every photo ``times`` times, each time shifted and brightened otherwise, as JPEG."""
    rng = np.random.default_rng(0)
    for path in sorted((DATASETS / "caltech101-10").rglob("*.jpg")):
        picture = np.asarray(Image.open(path).convert("RGB").resize(size)).astype(np.int16)
        folder = Path("data/raw", name, path.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            # Other photos, not near copies: blocks of the picture in another order.
            order = rng.permutation(4)
            parts = [part for half in np.split(picture, 2) for part in np.split(half, 2, axis=1)]
            parts = [np.roll(parts[place], rng.integers(-40, 40, 2), (0, 1)) for place in order]
            mixed = np.block([[[parts[0]], [parts[1]]], [[parts[2]], [parts[3]]]])
            mixed = np.clip(mixed + rng.integers(-30, 30, 3), 0, 255).astype(np.uint8)
            Image.fromarray(mixed).save(folder / f"{path.stem}-{copy}.jpg", quality=85)


def clear(name: str) -> None:
    """Forgets every result of a data set."""
    for stage in ("ingest", "augment"):
        shutil.rmtree(f"data/{stage}/{name}", ignore_errors=True)
        shutil.rmtree(f"data/{stage}/.cache/{name}", ignore_errors=True)


def seconds(work: Callable[[], object]) -> float:
    """Returns how long ``work`` takes; what it prints is dropped."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - started


def bare(paths: list[Path], size: tuple[int, int], mode: str) -> None:
    """Pillow alone, in one process: open, convert, resize."""
    for path in paths:
        with Image.open(path) as picture:
            np.asarray(picture.convert(mode).resize(size, Image.Resampling.BILINEAR))


def cleanvision(folder: Path) -> None:
    """CleanVision's checks, on all cores."""
    from cleanvision import Imagelab

    Imagelab(data_path=str(folder)).find_issues(n_jobs=workers.cores(), verbose=False)


def rates(rounds: int = 3, digits: int = 60_000, checked: int = 3_000) -> None:
    """Images/s of ingest, bare Pillow and CleanVision; the last two on a part where all would take long."""
    make(digits)
    larger("many", 10)
    for path in sorted(Path("data/raw/digits").rglob("*.png"))[:: max(1, digits // checked)]:
        Path("some", path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, Path("some", path.parent.name))
    rows = [
        ("photos", "photos", {}, "data/raw/photos"),
        ("photos, their parts mixed", "many", {}, "data/raw/photos"),
        ("digits", "digits", {}, "some"),
        ("digits, near duplicates not looked for", "digits", {"near_duplicates": False}, "some"),
    ]
    print("| pictures | ingest | per core, of bare Pillow | bare Pillow, 1 core | CleanVision | ingest is |")
    print("|---|---|---|---|---|---|")
    for title, name, extra, checks in rows:
        paths = sorted(path for path in Path("data/raw", name).rglob("*.*") if path.is_file())
        options = OPTIONS["digits" if name == "digits" else "photos"]
        some, size = paths[:: max(1, len(paths) // 2_000)], options["size"][::-1]
        mode = "L" if options["mode"] == "grey" else "RGB"
        count = sum(path.is_file() for path in Path(checks).rglob("*"))
        taken: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            clear(name)
            taken[0].append(len(paths) / seconds(partial(ingest, name, **options | extra)))
            taken[1].append(len(some) / seconds(partial(bare, some, size, mode)))
            taken[2].append(count / seconds(partial(cleanvision, Path(checks))))
        ours, alone, other = map(statistics.median, taken)
        print(
            f"| {len(paths):,} {title} | {ours:,.0f}/s | {ours / workers.cores() / alone:.2f} | {alone:,.0f}/s "
            f"| {other:,.0f}/s | {ours / other:.1f}x |"
        )


def edits(rounds: int = 5, times: int = 10) -> None:
    """Seconds of a full run, and of a run after 1 % of the files were added, removed and relabelled."""
    larger("many", times)
    larger("large", 2, (1600, 1200))
    make(60_000)
    print("| data set | stage | full, s | after an edit of 1 %, s | share |\n|---|---|---|---|---|")
    for name, options in (("many", OPTIONS["photos"]), ("large", OPTIONS["photos"]), ("digits", OPTIONS["digits"])):
        rng = np.random.default_rng(1)
        full: dict[str, list[float]] = {"ingest": [], "augment": []}
        edit: dict[str, list[float]] = {"ingest": [], "augment": []}
        for number in range(rounds):
            if number < 2:
                clear(name)
                full["ingest"].append(seconds(lambda name=name, options=options: ingest(name, Ingest(**options))))
                full["augment"].append(seconds(lambda name=name: augment(name, Augment(**CHANGES))))
            paths = sorted(path for path in Path("data/raw", name).rglob("*.*") if path.is_file())
            chosen = [paths[place] for place in rng.permutation(len(paths))[: len(paths) // 100]]
            classes = sorted({path.parent.name for path in paths})
            for place, path in enumerate(chosen):
                if place % 3 == 0:  # a new picture: this one, with its halves exchanged
                    with Image.open(path) as picture:
                        pixels = np.asarray(picture)
                    mixed = Image.fromarray(np.roll(pixels, len(pixels) // 2, axis=0))
                    mixed.save(path.with_name(f"{path.stem}-{number}{path.suffix}"))
                elif place % 3 == 1:
                    path.unlink()
                else:
                    other = classes[(classes.index(path.parent.name) + 1) % len(classes)]
                    path.rename(
                        Path("data/raw", name, other, f"{path.stem}-{number}-from-{path.parent.name}{path.suffix}")
                    )
            time.sleep(0.2)
            edit["ingest"].append(seconds(lambda name=name, options=options: ingest(name, Ingest(**options))))
            edit["augment"].append(seconds(lambda name=name: augment(name, Augment(**CHANGES))))
        for stage in ("ingest", "augment"):
            whole, part = statistics.median(full[stage]), statistics.median(edit[stage])
            print(f"| {len(paths):,} {name} | {stage} | {whole:.2f} | {part:.2f} | {part / whole:.1%} |")


def anonymous(pid: int) -> float:
    """Returns the memory of a process that is no file's, in MiB: pages of mapped files the system drops as it likes."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) / 2**10
    return 0.0


def peak(name: str) -> tuple[float, float]:
    """Returns the peak memory, in MiB, of an ingest in a process of its own: that process, and all together."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom stages.ingest.ingest import ingest\n"
    code += "from stages.ingest.entry import Ingest\n"
    code += f"if __name__ == '__main__': ingest({name!r}, Ingest(**{OPTIONS['photos']!r}))"
    Path("one.py").write_text(code)
    child = psutil.Popen([sys.executable, "one.py"], stdout=subprocess.DEVNULL)
    own = together = 0.0
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            parts = [anonymous(process.pid) for process in [child, *child.children(recursive=True)]]
            own, together = max(own, parts[0]), max(together, sum(parts))
        time.sleep(0.02)
    assert child.returncode == 0
    return own, together


def memory() -> None:
    """Peak memory while 1x and 10x the photos are read."""
    print("| photos | main process, MiB | with its workers, MiB |\n|---|---|---|")
    for times in (2, 20):
        larger(f"times{times}", times)
        own, together = peak(f"times{times}")
        print(f"| {1069 * times:,} | {own:,.0f} | {together:,.0f} |")


def executors(rounds: int = 3) -> None:
    """Images/s with one process, two, and two workers of a Dask cluster on this machine."""
    import dask.config
    from distributed import LocalCluster

    if not Path("data/raw/many").exists():
        larger("many", 5)
    count = sum(path.is_file() for path in Path("data/raw/many").rglob("*"))

    def one() -> None:
        former, workers.cores = workers.cores, lambda: 1
        ingest("many", Ingest(**OPTIONS["photos"]))
        workers.cores = former

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:

        def two() -> None:
            with dask.config.set({"scheduler-address": cluster.scheduler_address}):
                ingest("many", Ingest(**OPTIONS["photos"]))

        ways = {
            "1 process": one,
            "2 processes": lambda: ingest("many", Ingest(**OPTIONS["photos"])),
            "2 Dask workers": two,
        }
        taken: dict[str, list[float]] = {title: [] for title in ways}
        for _ in range(rounds):
            for title, work in ways.items():
                clear("many")
                taken[title].append(seconds(work))
    print("| executor | images/s | of 1 process |\n|---|---|---|")
    first = statistics.median(taken["1 process"])
    for title, times in taken.items():
        print(f"| {title} | {count / statistics.median(times):,.0f} | {first / statistics.median(times):.2f}x |")


if __name__ == "__main__":
    chosen = {"rates": rates, "edits": edits, "memory": memory, "workers": executors}
    for word in sys.argv[1:] or chosen:
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            Path("data/raw").mkdir(parents=True)
            chosen[word]()
            print(flush=True)
