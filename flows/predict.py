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
from stages.ingest import images
from stages.ingest.decoding import read_file
from stages.ingest.formats import tables
from stages.ingest.images import PICTURE_ENDINGS
from stages.ingest.records import Source
from stages.progress import track
from stages.workers import cores

BLOCK = 256  # pictures read and predicted at a time; bounds memory
SCHEMA = pa.schema(
    [("path", pa.string()), ("predicted", pa.string()), ("probability", pa.float32()), ("reason", pa.string())]
)

Example = tuple[str, bytes | Path | None, str | None]


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
    if (kind := prepared.pop("kind")) != "images":
        raise ConfigurationError(f"{dataset} holds {kind}; predict takes pictures.")
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
            read = list(pool.map(lambda example: _read(*example[1:], prepared), block))
            usable = [pixels for pixels, _ in read if pixels is not None]
            # Always of one size, so that the network is compiled once.
            stacked = np.zeros((BLOCK, *usable[0].shape), np.uint8) if usable else None
            if usable:
                stacked[: len(usable)] = usable
                answers = iter(np.asarray(network.predict_on_batch(stacked))[: len(usable)])
            rows = []
            for (path, *_), (pixels, reason) in zip(block, read, strict=True):
                answer = None if pixels is None else next(answers)
                label = None if answer is None else str(classes[answer.argmax()])
                rows.append((path, label, None if answer is None else float(answer.max()), reason))
            write(rows)
            done, refused = done + len(rows), refused + len(rows) - len(usable)
        if not done:
            raise InputRefusedError(f"{source} has no pictures ({', '.join(PICTURE_ENDINGS)}).")
        close()
        partial.replace(target)
    print(f"{target}: {done - refused:,} pictures predicted by version {champion.version}, {refused:,} cannot be read")


def _examples(source: Path) -> tuple[Iterator[Example], int | None]:
    """Returns name, place and problem of every picture, and how many there are, where that is known."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS)
        return ((path.relative_to(source).as_posix(), path, None) for path in paths), len(paths)
    if source.suffix in (".csv", ".parquet") and source.is_file():
        return _in_table(source), pq.read_metadata(source).num_rows if source.suffix == ".parquet" else None
    raise InputRefusedError(f"{source} is no folder, .csv or .parquet that exists.")


def _in_table(source: Path) -> Iterator[Example]:
    read = Source(source.parent)
    for row in tables.rows(read, source.name, (), ("image", "path")):
        [columns] = read.notes["columns"].values()
        if not columns:
            raise InputRefusedError(f"{source} has no column image and no column path.")
        picture, path = row.values.get("image"), row.values.get("path")
        if isinstance(picture, dict):
            picture = picture.get("bytes")
        place = picture if isinstance(picture, bytes) else source.parent / path if path else None
        yield path or f"{source.name}#{row.number}", place, row.problem or (None if place else "no bytes of a picture")


def _read(place: bytes | Path | None, problem: str | None, prepared: dict[str, Any]) -> tuple[np.ndarray | None, str]:
    """Returns pixels as ingest would store them, or None and why not."""
    if problem:
        return None, problem
    try:
        data = read_file(str(place.parent), place.name) if isinstance(place, Path) else place
        return images.decode(data, **prepared).arrays["image"], ""
    except InputRefusedError as error:
        return None, str(error)


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
