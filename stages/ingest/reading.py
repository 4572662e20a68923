"""Reads raw examples: known ones from what the last run found out, new ones decoded by the workers."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from convoy import checksums
from convoy.data.shards import ShardWriter
from convoy.errors import InputRefusedError, IntegrityError
from convoy.kinds.base import Payload
from convoy.machine import workers
from convoy.machine.progress import track
from stages.ingest.decoding import Decoded, Task, decode_block, digest_of, read_file
from stages.ingest.previous import COLUMNS, Known, stat_of
from stages.ingest.records import Item, class_of

BLOCK = 256  # examples that a worker decodes at a time, at the most: with fewer small ones it would wait for more
BLOCK_BYTES = 4 * 2**20  # what is sent to it, or back, at a time; bounds memory
SMALL = 8  # blocks up to which threads are used: starting processes takes longer


@dataclass
class Found:
    """Every example of the raw data, in order; lists of equal length.

    Attributes:
        paths: names for the manifest.
        labels: class names, or None.
        given: the split that the raw data gives, or None.
        stats: what changes when its files do; "" for a part of a file.
        digests: SHA-256 of the bytes it was read from.
        reasons: why it cannot be used; "" if it can.
        contents: SHA-256 of what it shows; b"" if it cannot be used.
        facts: what the manifest says of it, values in the order of ``names``; () if it cannot be used.
        names: of the facts.
        rows: content -> row of ``staging``, for newly decoded ones.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    given: list[str | None] = field(default_factory=list)
    stats: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    facts: list[tuple] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rows: dict[bytes, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)


def read(
    items: Iterable[Item],
    *,
    kind: str,
    folder: Path,
    options: dict,
    known: Known,
    staging: ShardWriter,
    sums: dict[str, str],
    title: str,
    now: int,
) -> Found:
    """Reads all ``items``; the arrays of new ones go to ``staging``, each content once.

    Args:
        items: what the reader found.
        kind: the reader.
        folder: where the files of the items lie.
        options: of the reader's ``decode``.
        known: what the last run found out.
        staging: takes the arrays, and ``content``.
        sums: file -> SHA-256 that it should have; files that are checked are taken out.
        title: of the progress display.
        now: nanoseconds since 1970; a file changed later than that is looked at again next time.

    Raises:
        IntegrityError: a file is not what ``sums`` says.
    """
    gatherer = Gatherer(folder, known, sums, now)
    found = gatherer.found
    sent: deque[tuple[list[int], list[Task]]] = deque()
    total = len(items) if isinstance(items, list) else None
    waiting = _blocks(track(items, title, "examples", total), gatherer, options, sent)
    head = list(islice(waiting, SMALL + 1))
    with workers.executor(len(head) <= SMALL, decode_block.__module__, f"convoy.kinds.{kind}") as pool:
        place = str(folder.absolute())
        for decoded in workers.map_ahead(pool, decode_block, chain(head, waiting), kind, place, options):
            _fill(found, *sent.popleft(), decoded, folder, sums, staging)
    return found


class Gatherer:
    """Adds examples to ``found``, with what the last run found out about them.

    The arguments are those of ``read``.
    """

    def __init__(self, folder: Path, known: Known, sums: dict[str, str], now: int) -> None:
        self.found = Found(names=[name for name in known.table if name not in COLUMNS])
        self._folder, self._known, self._sums, self._now = folder, known, sums, now
        columns = [known.table[name].tolist() for name in self.found.names]
        self._facts = list(zip(*columns, strict=True))
        self._reasons, self._contents, self._digests = (
            known.table[name].tolist() for name in ("reason", "content", "digest")
        )

    def add(self, item: Item) -> bool:
        """Adds an example, and says whether it has to be decoded, which fills in what is not known of it."""
        label, wrong = (None, None) if item.label is None else class_of(item.label)
        problem = item.problem or wrong
        stat, row = ("", None) if problem else self._look_up(item)
        found = self.found
        found.paths.append(item.path)
        found.labels.append(label)
        found.given.append(item.split)
        found.stats.append(stat)
        found.digests.append(b"" if row is None else self._digests[row])
        found.reasons.append((problem or "") if row is None else self._reasons[row])
        found.contents.append(b"" if row is None else self._contents[row])
        found.facts.append(() if row is None or self._reasons[row] else self._facts[row])
        return not problem and row is None

    def _look_up(self, item: Item) -> tuple[str, int | None]:
        """Returns the state of an example's files, and the row of the last run that is still true of it."""
        stat, row, known = "", None, self._known
        if item.files:
            stat = _stat(self._folder, item.files, self._now)
            row = known.by_stat.get((item.path, stat))
            if row is not None and len(item.files) == 1 and self._sums and self._digests[row]:
                _compare(self._folder, item.files, (self._digests[row],), self._sums)
        if row is None and known.by_digest:
            row = known.by_digest.get(_digest(self._folder, item, self._sums))
        if row is not None and self._contents[row] and self._contents[row] not in known.place:
            row = None  # it was left out, so its arrays are nowhere
        return stat, row


def _blocks(
    items: Iterable[Item], gatherer: Gatherer, options: dict, sent: deque[tuple[list[int], list[Task]]]
) -> Iterator[list[Task]]:
    """Adds every example, and yields those that have to be decoded; ``sent`` holds their numbers."""
    numbers: list[int] = []
    tasks: list[Task] = []
    most, held = _block_rows(options), 0
    for number, item in enumerate(items):
        if gatherer.add(item):
            numbers.append(number)
            tasks.append((item.files, item.payload))
            held += _bytes(item.payload)
        if len(numbers) == most or held > BLOCK_BYTES:
            sent.append((numbers, tasks))
            yield tasks
            numbers, tasks, held = [], [], 0
    if numbers:
        sent.append((numbers, tasks))
        yield tasks


def _block_rows(options: dict) -> int:
    """Returns how many examples are decoded at a time."""
    pixels = math.prod(options.get("size") or [1]) * (1 if options.get("mode") == "grey" else 3)
    return min(BLOCK, max(1, BLOCK_BYTES // pixels))


def _bytes(payload: Payload | None) -> int:
    if isinstance(payload, np.ndarray):
        return payload.nbytes
    return sum(map(len, payload)) if isinstance(payload, tuple) else len(payload or ())


def read_sums(folder: Path) -> dict[str, str]:
    """Returns file -> SHA-256 from the SHA256SUMS of a raw folder; {} if it has none.

    Raises:
        IntegrityError: it is damaged, or leads out of the folder.
    """
    try:
        return checksums.read(folder)
    except InputRefusedError as error:
        raise IntegrityError(str(error)) from error


def check_sums(folder: Path, sums: dict[str, str], wanted: Callable[[str], bool]) -> None:
    """Compares the ``wanted`` files with their SHA-256, and takes them out of ``sums``.

    Raises:
        IntegrityError: a file is missing or was changed.
    """
    names = [name for name in sums if wanted(name)]
    with ThreadPoolExecutor(workers.cores()) as pool:
        for name, found in zip(names, pool.map(lambda name: _file_digest(folder / name), names), strict=True):
            _compare(folder, (name,), (found,), sums)


def _fill(
    found: Found,
    numbers: list[int],
    tasks: list[Task],
    decoded: Decoded,
    folder: Path,
    sums: dict[str, str],
    staging: ShardWriter,
) -> None:
    found.names = found.names or decoded.names
    kept, row = [], 0
    for place, number in enumerate(numbers):
        if sums:
            _compare(folder, tasks[place][0], decoded.files[place], sums)
        found.digests[number] = decoded.digests[place]
        found.reasons[number] = decoded.reasons[place]
        found.facts[number] = decoded.facts[place]
        found.contents[number] = content = decoded.contents[place]
        if content:
            if content not in found.rows:
                found.rows[content] = len(found.rows)
                kept.append(row)
            row += 1
    if kept:
        usable = [content for content in decoded.contents if content]
        contents = np.frombuffer(b"".join(usable[row] for row in kept), np.uint8).reshape(-1, 32)
        staging.append({name: array[kept] for name, array in decoded.arrays.items()} | {"content": contents})


def _stat(folder: Path, files: tuple[str, ...], now: int) -> str:
    try:
        return stat_of(str(folder), files, now)
    except OSError:
        return ""  # decoding says what is wrong


def _digest(folder: Path, item: Item, sums: dict[str, str]) -> bytes | None:
    """Returns what ``decode_block`` would say was read."""
    if not item.files:
        return digest_of(item.payload)
    try:
        files = tuple(hashlib.sha256(read_file(str(folder), file)).digest() for file in item.files)
    except InputRefusedError:
        return None
    _compare(folder, item.files, files, sums)
    return files[0] if len(files) == 1 else digest_of(files)


def _file_digest(path: Path) -> bytes | None:
    try:
        return bytes.fromhex(checksums.sha256(path)) if path.is_file() else None  # a pipe would never end
    except OSError:
        return None


def _compare(folder: Path, names: tuple[str, ...], digests: tuple[bytes | None, ...], sums: dict[str, str]) -> None:
    for name, digest in zip(names, digests, strict=False):
        wanted = sums.pop(name, None)
        if wanted and (digest is None or wanted != digest.hex()):
            raise IntegrityError(
                f"{folder / name} {'was changed' if digest else 'is missing'}: it does not match {checksums.SUMS}. "
                "Get it back (dvc checkout, or dvc repro --force --single-item fetch@NAME); if the change is meant, "
                f"write {checksums.SUMS} again or remove it."
            )
