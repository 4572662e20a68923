"""Feeds changed files of every format to what reads them: coverage-guided fuzzing by libFuzzer (atheris).

Usage: ``make BENCHMARKS=1 setup``, then ``python benchmarks/fuzz.py [--inputs 10000] [--only NAME ...] [--seed 0]``;
Linux on x86-64, about ten minutes on 2 cores. Each reader gets its share of the inputs in a process of its own,
beginning with good files: raw data goes through the whole of ``ingest`` as one file among good ones, files of our own -
networks, dvc.lock, params.yaml, shards, what DVC says of who is at work - through what opens them. An input may be read
or refused with a message. Anything else is found and kept: an exception, a message that steers a terminal, more than
SECONDS, or more memory than LIMIT above what the imports take. Prints Markdown for RESULTS.md; ends with 1 if anything
was found.
"""

import argparse
import gzip
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from convoy.machine.room import cores

SECONDS = 10  # of one input
LIMIT = 512  # MiB
LARGEST = 2**16  # bytes of an input
MODULES = [f"ingest.{name}" for name in ("images", "ingest", "report", "text", "translation", "volumes")]
TRIES = 5  # times that a reader begins again after something was found
STEERS = re.compile(r"[^\n\t -~\xa0-\U0010ffff]")
IMAGES = {"kind": "images", "size": [8, 8], "mode": "grey", "near_duplicates": False, "max_bad": 0.9}
VOLUMES = IMAGES | {"kind": "volumes", "size": [4, 8, 8]}
TEXT = {"kind": "text", "near_duplicates": False, "max_bad": 0.9}
PAIRS = TEXT | {"kind": "translation"}


@dataclass(frozen=True)
class Reader:
    """What reads a format.

    Attributes:
        seed: a good file.
        file: where it lies: in data/raw/x, or in the working directory.
        entry: of ``ingest``; {} where something else reads it.
        others: files that lie beside it in data/raw/x.
        reads: opens the file at that path, where ``ingest`` does not.
    """

    seed: Callable[[], bytes]
    file: str
    entry: dict[str, Any] = field(default_factory=dict)
    others: Callable[[], dict[str, bytes]] = dict
    reads: Callable[[Path], None] | None = None


def picture(form: str, number: int = 99) -> bytes:
    """Returns 12x12 pixels of noise in a format of Pillow's."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def pictures(count: int = 24) -> dict[str, bytes]:
    """Returns pictures of two classes."""
    return {f"{'ab'[number % 2]}/{number:02d}.png": picture("PNG", number) for number in range(count)}


def zipped() -> bytes:
    """Returns them in a zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures().items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred(mode: str) -> bytes:
    """Returns them in a tar."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in pictures().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    """Returns what a function of NumPy's writes."""
    content = io.BytesIO()
    save(content, *arrays, **named)
    return content.getvalue()


def noise(*shape: int) -> np.ndarray:
    """Returns bytes, the same for a shape."""
    return np.random.default_rng(shape).integers(0, 256, shape, np.uint8)


def idx(array: np.ndarray) -> bytes:
    """Returns an array as MNIST is published."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


LABELS = np.arange(24, dtype=np.uint8) % 2
IDX_IMAGES, IDX_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def table() -> pd.DataFrame:
    """Returns 24 sentences of two classes."""
    sentences = [f"sentence number {number} of a table, caf\u00e9" for number in range(24)]
    return pd.DataFrame({"text": sentences, "label": [("a", "b")[number % 2] for number in range(24)]})


def lines(language: str) -> bytes:
    """Returns the lines of one side of 24 pairs."""
    return "".join(f"{language} sentence number {number}\n" for number in range(24)).encode()


def cifar() -> bytes:
    """Returns a batch as CIFAR-10 is published for Python."""
    return pickle.dumps({b"data": noise(24, 3072), b"labels": LABELS.tolist()}, protocol=2)


def nifti() -> bytes:
    """Returns a volume of 4x8x8 in NIfTI-1."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 8, 8, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + noise(4, 8, 8).tobytes()


def volumes() -> dict[str, bytes]:
    """Returns volumes of two classes."""
    rng = np.random.default_rng(0)
    return {
        f"{'ab'[number % 2]}/{number:02d}.npy": saved(np.save, rng.integers(0, 256, (4, 8, 8), np.uint8))
        for number in range(24)
    }


def network() -> bytes:
    """Returns a small network."""
    import keras

    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.Dense(3, "relu")(inputs))
    with tempfile.TemporaryDirectory() as folder:
        keras.Model(inputs, outputs).save(Path(folder, "a.keras"))
        return Path(folder, "a.keras").read_bytes()


def shards(path: Path) -> None:
    """Opens shards whose index is the input, and reads a row."""
    from convoy.data.shards import Shards, write_shards

    content, folder = path.read_bytes(), path.parent / "shards"
    if not folder.exists():
        write_shards(folder, [{"image": noise(24, 8, 8, 1), "label": LABELS.astype(np.int64)}])
    (folder / "index.json").write_bytes(content)
    found = Shards(folder)
    if len(found):
        found[0]


def index() -> bytes:
    """Returns the index of those shards."""
    from convoy.data.shards import write_shards

    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder, "a"), [{"image": noise(24, 8, 8, 1), "label": LABELS.astype(np.int64)}])
        return Path(folder, "a/index.json").read_bytes()


def stages_of_lock(path: Path) -> None:
    """Reads dvc.lock."""
    from convoy.repo import lockfile

    lockfile.stages()


def sections_of_params(path: Path) -> None:
    """Checks params.yaml as ``check`` does."""
    from convoy import params
    from convoy.schema import prepare

    for stage, found in params.load().items():
        for name, entry in found.items():
            prepare(stage, name, entry)


def freed(path: Path) -> None:
    """Takes the dead out of DVC's list."""
    from convoy.repo import busy

    busy.free()


def checked(path: Path) -> None:
    """Looks at a network."""
    from convoy.model import safe_load

    safe_load.check(path)


READERS = {
    **{
        form.lower(): Reader(partial(picture, form), f"a/changed.{ending}", IMAGES, pictures)
        for form, ending in (("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
                             ("WEBP", "webp"), ("PPM", "ppm"))
    },
    "zip": Reader(zipped, "x.zip", IMAGES),
    "tar": Reader(partial(tarred, "w"), "x.tar", IMAGES),
    "tar.gz": Reader(partial(tarred, "w:gz"), "x.tar.gz", IMAGES),
    "tar.bz2": Reader(partial(tarred, "w:bz2"), "x.tar.bz2", IMAGES),
    "tar.xz": Reader(partial(tarred, "w:xz"), "x.tar.xz", IMAGES),
    "npz": Reader(lambda: saved(np.savez, x_train=noise(24, 8, 8), y_train=LABELS), "x.npz", IMAGES),
    "npz, compressed": Reader(
        lambda: saved(np.savez_compressed, x_train=noise(24, 8, 8), y_train=LABELS), "x.npz", IMAGES
    ),
    "npy of pictures": Reader(
        lambda: saved(np.save, noise(24, 8, 8)), "images.npy", IMAGES, lambda: {"labels.npy": saved(np.save, LABELS)}
    ),
    "npy of a volume": Reader(lambda: saved(np.save, noise(4, 8, 8)), "a/changed.npy", VOLUMES, volumes),
    "NIfTI": Reader(nifti, "a/changed.nii", VOLUMES, volumes),
    "NIfTI, gz": Reader(lambda: gzip.compress(nifti()), "a/changed.nii.gz", VOLUMES, volumes),
    "IDX": Reader(lambda: idx(noise(24, 8, 8)), IDX_IMAGES, IMAGES, lambda: {IDX_LABELS: idx(LABELS)}),
    "IDX, labels": Reader(lambda: idx(LABELS), IDX_LABELS, IMAGES, lambda: {IDX_IMAGES: idx(noise(24, 8, 8))}),
    "IDX, gz": Reader(
        lambda: gzip.compress(idx(noise(24, 8, 8))), f"{IDX_IMAGES}.gz", IMAGES, lambda: {IDX_LABELS: idx(LABELS)}
    ),
    "CIFAR": Reader(cifar, "data_batch_1", IMAGES | {"size": [32, 32], "mode": "colour"}),
    "csv": Reader(lambda: table().to_csv(index=False).encode(), "train.csv", TEXT),
    "tsv": Reader(lambda: table().to_csv(index=False, sep="\t").encode(), "train.tsv", TEXT),
    "jsonl": Reader(lambda: table().to_json(orient="records", lines=True).encode(), "train.jsonl", TEXT),
    "parquet": Reader(lambda: table().to_parquet(index=False), "train.parquet", TEXT),
    "txt": Reader(lambda: lines("one"), "a/changed.txt", TEXT, lambda: {"b/b.txt": lines("other")}),
    "pairs": Reader(lambda: lines("english"), "train.en", PAIRS | {"columns": {"source": "en", "target": "de"}},
                    lambda: {"train.de": lines("german")}),
    "SHA256SUMS": Reader(lambda: b"0" * 64 + b"  a/00.png\n", "SHA256SUMS", IMAGES, pictures),
    "network": Reader(network, "model.keras", reads=checked),
    "shards": Reader(index, "index.json", reads=shards),
    "dvc.lock": Reader(lambda: b"schema: '2.0'\nstages:\n  fetch@a:\n    cmd: a\n    outs:\n    - path: data/raw/a\n"
                       b"      hash: md5\n      md5: 0.dir\n", "dvc.lock", reads=stages_of_lock),
    "params.yaml": Reader(lambda: (ROOT / "params.yaml").read_bytes(), "params.yaml", reads=sections_of_params),
    "rwlock": Reader(
        lambda: b'{"write": {"/a": {"pid": 1, "cmd": "dvc"}}, "read": {}}', ".dvc/tmp/rwlock", reads=freed
    ),
}  # fmt: skip


def main() -> None:
    """Fuzzes every reader and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--only", nargs="+", default=list(READERS), choices=READERS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, default=Path("fuzz-found"), help="where what was found is kept")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, runs, seed = arguments.one
        fuzz(name, int(runs), int(seed))
        return
    each = -(-arguments.inputs // len(arguments.only))
    print(f"| format | inputs | read | refused | exceptions | hangs | too much memory | peak, MiB |\n|{'---|' * 8}")
    totals: Counter[str] = Counter()
    with ThreadPoolExecutor(cores()) as pool:
        for name, found in zip(
            arguments.only, pool.map(lambda one: fuzzed(one, each, arguments), arguments.only), strict=True
        ):
            cells = [found[key] for key in ("inputs", "read", "refused", "crash", "timeout", "oom", "peak")]
            print(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |", flush=True)
            totals += found
    print(f"\n{totals['inputs']:,} inputs: {totals['read']:,} read, {totals['refused']:,} refused")
    sys.exit(bool(totals["crash"] + totals["timeout"] + totals["oom"]))


def fuzzed(name: str, runs: int, arguments: argparse.Namespace) -> Counter[str]:
    """Fuzzes one reader in processes of its own; returns what became of the inputs."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for attempt in range(TRIES):
            if (left := runs - found["inputs"]) <= 0:
                break
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, str(left), str(arguments.seed + attempt + 1)],
                cwd=scratch, capture_output=True, text=True, errors="replace", check=False,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            statuses = Path(scratch, "statuses").read_text() if Path(scratch, "statuses").exists() else ""
            if not statuses:
                sys.exit(f"{name}: nothing was fuzzed:\n{done.stderr[-2000:]}")
            found["read"] += statuses.count("0")
            found["refused"] += len(statuses) - statuses.count("0")
            found["inputs"] += len(statuses)
            peak = re.search(r"stat::peak_rss_mb: +(\d+)", done.stderr)
            found["peak"] = max(found["peak"], int(peak[1]) if peak else 0)
            Path(scratch, "statuses").unlink()
            kept = [file for file in Path(scratch).iterdir() if file.name.startswith(("crash-", "timeout-", "oom-"))]
            for file in kept:
                found[file.name.partition("-")[0]] += 1
                found["inputs"] += 1
                arguments.kept.mkdir(exist_ok=True)
                place = arguments.kept / f"{name.replace(' ', '-')}-{file.name}"
                shutil.move(file, place)
                place.with_name(f"{place.name}.log").write_text(done.stdout[-3000:] + done.stderr[-6000:])
                print(f"{name}: {place}\n{done.stdout[-1500:]}", file=sys.stderr)
            if not kept and done.returncode:
                sys.exit(f"{name}: ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return found


def fuzz(name: str, runs: int, seed: int) -> None:
    """Fuzzes one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["stages"]):
        from convoy import errors, params, schema
        from convoy.data import shards
        from convoy.model import safe_load
        from convoy.repo import busy, lockfile
        from stages.__main__ import main as run
        from stages.ingest import ingest
        from stages.ingest.finders import images, text, translation, volumes
        from stages.train.train import train
    imported = (
        busy,
        schema,
        errors,
        lockfile,
        safe_load,
        params,
        shards,
        images,
        ingest,
        text,
        translation,
        volumes,
        train,
    )
    assert all(imported)
    reader = READERS[name]
    good = reader.seed()
    statuses = os.open("statuses", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    Path("corpus").mkdir(exist_ok=True)
    Path("corpus/good").write_bytes(good)
    Path("work/.dvc/tmp").mkdir(parents=True, exist_ok=True)
    os.chdir("work")
    path = Path("data/raw/x", reader.file) if reader.entry else Path(reader.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in reader.others().items():
        Path("data/raw/x", file).parent.mkdir(parents=True, exist_ok=True)
        Path("data/raw/x", file).write_bytes(content)
    if reader.entry:
        sections = {section: {} for section in ("fetch", "augment", "train", "register")}
        with Path("params.yaml").open("w") as file:
            YAML().dump(sections | {"ingest": {"x": reader.entry}}, file)

    def once(data: bytes) -> None:
        path.write_bytes(data)
        status, said = 0, io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            if reader.reads is None:
                status = run("ingest", "x")
            else:
                try:
                    reader.reads(path)
                except errors.StageError as error:
                    status = error.status
        if STEERS.search(said.getvalue()):
            raise AssertionError(f"steers a terminal: {said.getvalue()!r}")
        if status not in (0, 2, 3, 4):
            raise AssertionError(f"status {status}: {said.getvalue()}")
        os.write(statuses, str(status).encode())

    once(good)
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    options = [
        f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS}", f"-rss_limit_mb={memory + LIMIT}",
        f"-max_len={max(LARGEST, len(good))}", "-artifact_prefix=../", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, "../corpus"], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
