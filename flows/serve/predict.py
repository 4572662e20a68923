"""Batch prediction by the champion: ``convoy predict digits INPUT OUTPUT``."""

import csv
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

from convoy import files
from convoy.errors import ConfigurationError, InputRefusedError
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.tracking import registry
from stages.ingest.decoding import read_file
from stages.ingest.finders.images import PICTURE_ENDINGS
from stages.ingest.formats import tables
from stages.ingest.records import Source
from stages.register.model import COLUMNS, prepared, together

BLOCK = 256  # examples read and predicted at a time; bounds memory
ENDINGS = {"images": PICTURE_ENDINGS, "volumes": (".npy", ".gif", ".tif", ".tiff")}  # files of which each is an example
SCHEMA = pa.schema(
    [("path", pa.string()), ("predicted", pa.string()), ("probability", pa.float32()), ("reason", pa.string())]
)

Example = tuple[str, bytes | str | Path | None, str | None]


def predict(dataset: str, source: Path, target: Path) -> None:
    """Predicts every example of ``source``, in bounded memory; writes ``target``, whole or not at all.

    ``target`` (.csv or .parquet) has a row per example, in order: ``path``, ``predicted`` (the class or the
    translation), ``probability`` (of the class; of a translation the geometric mean over its tokens), and ``reason`` -
    why an example cannot be read, which stops nothing.

    Args:
        dataset: whose champion predicts; examples are prepared as ingest prepared those that it learned from.
        source: of pictures and volumes a folder, with all files below it, or a .csv with the column ``path``, relative
            to it, or a .parquet with that, or with the column ``image`` (bytes, or a struct with the field bytes). Of
            texts a .csv or .parquet with the column ``text``, for translations ``source``, whichever columns ingest
            read; or a .txt, a text per line.
        target: where to.

    Raises:
        ConfigurationError: there is no champion, another tool made it, or it was stored without what it takes; the
            target has another ending.
        IntegrityError: its stored files were changed, or are gone.
        InputRefusedError: the source has no examples.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise ConfigurationError(f"{target}: the ending has to be .csv or .parquet.")
    champion = registry.needed_champion(dataset)
    kind = champion.tags.get("kind")
    if kind is None:
        raise ConfigurationError(
            f"version {champion.version} of {dataset} does not say how its examples were prepared: register it again."
        )
    examples, total = _examples(source, kind)
    backend, predictor = (
        import_module(f"convoy.model.{name}") for name in ("backend", "predictor")
    )  # seconds of start-up
    backend.prepare()
    known = predictor.Predictor(*registry.load_model(champion))

    tracked = track(examples, f"predict@{dataset}", "examples", total)
    with ExitStack() as stack:
        partial = stack.enter_context(files.replacement(target))
        pool = stack.enter_context(ThreadPoolExecutor(cores()))
        write, close = _writer(partial, target.suffix)
        refused = done = 0
        while block := list(islice(tracked, BLOCK)):
            read = list(pool.map(lambda example: _read(*example[1:], known.takes), block))
            usable = [value for value, _ in read if value is not None]
            answers = iter(known.answer({COLUMNS[kind]: together(usable)}) if usable else ())
            rows = []
            for (path, *_), (value, reason) in zip(block, read, strict=True):
                label, probability = (None, None) if value is None else next(answers)
                rows.append((path, label, probability, reason))
            write(rows)
            done, refused = done + len(rows), refused + len(rows) - len(usable)
        if not done:
            raise InputRefusedError(f"{source} has no examples{_endings(kind)}.")
        close()
    print(f"{target}: {done - refused:,} examples predicted by version {champion.version}, {refused:,} cannot be read")


def _examples(source: Path, kind: str) -> tuple[Iterator[Example], int | None]:
    """Returns name, place and problem of every example, and how many there are, where that is known."""
    if source.is_dir() and kind in ENDINGS:
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS[kind])
        return ((path.relative_to(source).as_posix(), path, None) for path in paths), len(paths)
    if source.suffix == ".txt" and source.is_file() and kind not in ENDINGS:
        return _in_lines(source), None
    if source.suffix in (".csv", ".parquet") and source.is_file():
        return _in_table(source, kind), pq.read_metadata(source).num_rows if source.suffix == ".parquet" else None
    allowed = "folder, .csv or .parquet" if kind in ENDINGS else ".txt, .csv or .parquet"
    raise InputRefusedError(f"{source} is no {allowed} that exists.")


def _endings(kind: str) -> str:
    return f" ({', '.join(ENDINGS[kind])})" if kind in ENDINGS else ""


def _in_lines(source: Path) -> Iterator[Example]:
    with source.open(encoding="utf-8-sig") as file:  # ingest, too, takes no byte order mark for text
        try:
            for number, line in enumerate(file, start=1):
                yield f"{source.name}#{number}", line, None
        except UnicodeDecodeError as error:
            raise InputRefusedError(f"{source} is not UTF-8: {error}") from None


def _in_table(source: Path, kind: str) -> Iterator[Example]:
    read, column = Source(source.parent), COLUMNS[kind]
    for row in tables.rows(read, source.name, (), (column, "path") if kind in ENDINGS else (column,)):
        [columns] = read.notes["columns"].values()
        if not columns:
            raise InputRefusedError(
                f"{source} has no column {column}{' and no column path' if kind in ENDINGS else ''}."
            )
        value, path = row.values.get(column), row.values.get("path")
        name = path or f"{source.name}#{row.number}"
        if kind not in ENDINGS:
            yield name, value, row.problem or (None if isinstance(value, str) else "no text")
            continue
        if isinstance(value, dict):
            value = value.get("bytes")
        place = value if isinstance(value, bytes) else source.parent / path if path else None
        yield name, place, row.problem or (None if place else f"no bytes of {kind}")


def _read(
    place: bytes | str | Path | None, problem: str | None, takes: dict[str, Any]
) -> tuple[np.ndarray | str | None, str]:
    """Returns an example as ingest would store it, or None and why not."""
    if problem:
        return None, problem
    try:
        return prepared(read_file(str(place.parent), place.name) if isinstance(place, Path) else place, takes), ""
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
