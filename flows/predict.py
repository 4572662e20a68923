"""Batch prediction by the champion: ``python -m flows predict --dataset digits INPUT OUTPUT``."""

import csv
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages import tracking
from stages.errors import ConfigurationError, InputRefusedError
from stages.ingest.formats import pictures
from stages.progress import track
from stages.workers import cores

BLOCK = 256  # pictures read and predicted at a time; bounds memory
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
SCHEMA = pa.schema(
    [("path", pa.string()), ("predicted", pa.string()), ("probability", pa.float32()), ("reason", pa.string())]
)

Example = tuple[str, bytes | Path]


def predict(dataset: str, source: Path, target: Path) -> None:
    """Predicts every picture of ``source``, in bounded memory; writes ``target``, whole or not at all.

    ``target`` (.csv or .parquet) has a row per picture, in order: ``path``, ``predicted`` (the class), ``probability``,
    and ``reason`` - why a picture cannot be read, which stops nothing.

    Args:
        dataset: whose champion predicts; the pictures are prepared as ingest prepared those that it learned from.
        source: a folder, with all pictures below it; a .csv with the column ``path``, relative to it; or a .parquet
            with that, or with the column ``image`` (bytes, or a struct with the field bytes).
        target: where to.

    Raises:
        ConfigurationError: there is no champion, or it does not take pictures; the target has another ending.
        InputRefusedError: the source has no pictures.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise ConfigurationError(f"{target}: the ending has to be .csv or .parquet.")
    champion = tracking.champion(dataset)
    if champion is None:
        raise ConfigurationError(f"{tracking.uri()} has no champion of {dataset!r}: register one first (make repro).")
    if "ingest" not in champion.tags:
        raise ConfigurationError(
            f"version {champion.version} of {dataset} does not say how its pictures were prepared."
        )
    prepared, classes = json.loads(champion.tags["ingest"]), np.asarray(json.loads(champion.tags["classes"]))
    if prepared["kind"] != "images":
        raise ConfigurationError(f"{dataset} holds {prepared['kind']}; predict takes pictures.")
    examples, total = _examples(source)
    compute = import_module("stages.compute")  # seconds of start-up, which a mistake above should not take
    compute.prepare()
    network = tracking.load_model(champion.source)
    network.jit_compile = compute.compilation()

    partial = target.with_name(f"{target.name}.partial")
    tracked = track(examples, f"predict@{dataset}", "pictures", total)
    with ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        pool = stack.enter_context(ThreadPoolExecutor(cores()))
        write, close = _writer(partial, target.suffix)
        refused = done = 0
        while block := list(islice(tracked, BLOCK)):
            read = list(pool.map(lambda example: _read(example[1], prepared), block))
            usable = [pixels for pixels, _ in read if pixels is not None]
            # Always of one size, so that the network is compiled once.
            stacked = np.zeros((BLOCK, *usable[0].shape), np.uint8) if usable else None
            if usable:
                stacked[: len(usable)] = usable
                answers = iter(np.asarray(network.predict_on_batch(stacked))[: len(usable)])
            rows = []
            for (path, _), (pixels, reason) in zip(block, read, strict=True):
                answer = None if pixels is None else next(answers)
                label = None if answer is None else str(classes[answer.argmax()])
                rows.append((path, label, None if answer is None else float(answer.max()), reason))
            write(rows)
            done, refused = done + len(rows), refused + len(rows) - len(usable)
        if not done:
            raise InputRefusedError(f"{source} has no pictures ({', '.join(ENDINGS)}).")
        close()
        partial.replace(target)
    print(f"{target}: {done - refused:,} pictures predicted by version {champion.version}, {refused:,} cannot be read")


def _examples(source: Path) -> tuple[Iterator[Example], int | None]:
    """Returns (name, file or its bytes) of every picture, and how many there are, where that is known."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
        return ((path.relative_to(source).as_posix(), path) for path in paths), len(paths)
    if source.suffix == ".csv" and source.is_file():
        return _from_csv(source), None
    if source.suffix == ".parquet" and source.is_file():
        return _from_parquet(source), pq.read_metadata(source).num_rows
    raise InputRefusedError(f"{source} is no folder, .csv or .parquet that exists.")


def _from_csv(source: Path) -> Iterator[Example]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise InputRefusedError(
                f"{source} has no column path. It has: {', '.join(rows.fieldnames or ()) or 'none'}."
            )
        for row in rows:
            yield row["path"], source.parent / row["path"]


def _from_parquet(source: Path) -> Iterator[Example]:
    names = pq.read_schema(source).names
    column = next((name for name in ("image", "path") if name in names), None)
    if column is None:
        raise InputRefusedError(f"{source} has no column image or path. It has: {', '.join(names)}.")
    number = 0
    for batch in pq.ParquetFile(source).iter_batches(
        BLOCK, columns=[name for name in names if name in ("image", "path")]
    ):
        for row in batch.to_pylist():
            name = row.get("path") or f"#{number}"
            picture = row["image"]["bytes"] if isinstance(row.get("image"), dict) else row.get("image")
            yield name, picture if column == "image" else source.parent / name
            number += 1


def _read(place: bytes | Path | None, prepared: dict[str, Any]) -> tuple[np.ndarray | None, str]:
    """Returns pixels as ingest would store them, or None and why not."""
    try:
        if place is None:
            return None, "no bytes of a picture"
        data = place.read_bytes() if isinstance(place, Path) else place
        size = tuple(prepared["size"])
        picture, _ = pictures.read(data, max(size), prepared["mode"])
        return pictures.to_array(pictures.to_size(picture, size=size, mode=prepared["mode"], fit=prepared["fit"])), ""
    except InputRefusedError as error:
        return None, str(error)
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"


def _writer(path: Path, suffix: str) -> tuple[Callable[[list[tuple]], None], Callable[[], None]]:
    """Returns what writes rows, and what ends the file."""
    if suffix == ".csv":
        file = path.open("w", newline="", encoding="utf-8")
        rows = csv.writer(file)
        rows.writerow(SCHEMA.names)
        return rows.writerows, file.close
    table = pq.ParquetWriter(path, SCHEMA)

    def write(rows: list[tuple]) -> None:
        columns = [list(column) for column in zip(*rows, strict=True)]
        table.write_batch(pa.record_batch(columns, schema=SCHEMA))

    return write, table.close
