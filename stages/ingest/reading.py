"""Reads raw examples: known ones from what the last run found out, new ones decoded by the workers."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, islice
from pathlib import Path

import numpy as np

from stages import checksums, workers
from stages.errors import InputRefusedError, IntegrityError
from stages.ingest.previous import COLUMNS, Known, stat_of
from stages.ingest.records import Item, Payload, class_of
from stages.progress import track
from stages.shards import Arrays, ShardWriter

BLOCK = 64  # examples decoded at a time by a worker
SMALL = 32  # blocks up to which threads are used: starting processes takes longer
FILE_BYTES = 2**30  # largest file that is one example; above, a worker's memory would not be bounded
FINGERPRINT = "fingerprint"  # the array of them in the staging shards; it is not part of the output


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


@dataclass(frozen=True, slots=True)
class Decoded:
    """A block of examples from a worker; ``arrays``: those of the usable ones, and their fingerprints, stacked."""

    digests: list[bytes]
    files: list[tuple[bytes, ...]]  # SHA-256 of every whole file of every example
    reasons: list[str]
    contents: list[bytes]
    names: list[str]
    facts: list[tuple]
    arrays: Arrays


Task = tuple[tuple[str, ...], Payload | None]  # files and payload of an Item, which alone a worker needs


def decode_block(tasks: list[Task], kind: str, folder: str, options: dict) -> Decoded:
    """Reads and decodes examples; the function that runs in worker processes and on a cluster."""
    decode = import_module(f"stages.ingest.{kind}").decode
    result = Decoded([], [], [], [], [], [], {})
    stacks: dict[str, list] = {}
    for names, payload in tasks:
        reason, example, files = "", None, ()
        try:
            data = payload
            if names:
                data = [_read(folder, file) for file in names]
                files = tuple(hashlib.sha256(content).digest() for content in data)
            digest = files[0] if len(files) == 1 else digest_of(files or data)
            example = decode(data, **options)
        except InputRefusedError as refusal:
            # A file that could not be read has no digest, by which another would be known.
            reason, digest = str(refusal), b"" if names and not files else digest
        result.digests.append(digest)
        result.files.append(files)
        result.reasons.append(reason)
        result.contents.append(example.content if example else b"")
        result.facts.append(tuple(example.facts.values()) if example else ())
        if example:
            if not stacks:
                result.names.extend(example.facts)
            for name, array in example.arrays.items():
                stacks.setdefault(name, []).append(array)
            if example.fingerprint is not None:
                stacks.setdefault(FINGERPRINT, []).append(example.fingerprint)
    for name, stack in stacks.items():
        result.arrays[name] = np.array([*stack, None], object)[:-1] if isinstance(stack[0], str) else np.stack(stack)
    return result


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
    found = Found(names=[name for name in known.table if name not in COLUMNS])
    facts = list(zip(*(known.table[name].tolist() for name in found.names), strict=True)) if found.names else []
    reasons, contents, digests = (known.table[name].tolist() for name in ("reason", "content", "digest"))
    total = len(items) if isinstance(items, list) else None
    sent: deque[tuple[list[int], list[Task]]] = deque()

    def take(item: Item, label: str | None, problem: str | None, stat: str, row: int | None) -> None:
        """Adds an example; what is not known of it is filled in when it has been decoded."""
        found.paths.append(item.path)
        found.labels.append(label)
        found.given.append(item.split)
        found.stats.append(stat)
        found.digests.append(b"" if row is None else digests[row])
        found.reasons.append((problem or "") if row is None else reasons[row])
        found.contents.append(b"" if row is None else contents[row])
        found.facts.append(() if row is None or reasons[row] else facts[row])

    def blocks() -> Iterator[list[Task]]:
        """Adds every example, and yields those that have to be decoded; ``sent`` holds their numbers."""
        numbers: list[int] = []
        tasks: list[Task] = []
        for item in track(items, title, "examples", total):
            stat, row = "", None
            label, wrong = (None, None) if item.label is None else class_of(item.label)
            problem = item.problem or wrong
            if not problem:
                if item.files:
                    stat = _stat(folder, item.files, now)
                    row = known.by_stat.get((item.path, stat))
                    if row is not None and len(item.files) == 1 and sums and digests[row]:
                        _compare(folder, item.files, (digests[row],), sums)
                if row is None and known.by_digest:
                    row = known.by_digest.get(_digest(folder, item, sums))
                if row is not None and contents[row] and contents[row] not in known.place:
                    row = None  # it was left out, so its arrays are nowhere
                if row is None:
                    numbers.append(len(found))
                    tasks.append((item.files, item.payload))
            take(item, label, problem, stat, row)
            if len(numbers) == BLOCK:
                sent.append((numbers, tasks))
                yield tasks
                numbers, tasks = [], []
        if numbers:
            sent.append((numbers, tasks))
            yield tasks

    waiting = blocks()
    head = list(islice(waiting, SMALL + 1))
    with workers.executor(small=len(head) <= SMALL) as pool:
        place = str(folder.absolute())
        for decoded in workers.map_ahead(pool, decode_block, chain(head, waiting), kind, place, options):
            _fill(found, *sent.popleft(), decoded, folder, sums, staging)
    return found


def digest_of(data: Payload | tuple[bytes, ...]) -> bytes:
    """Returns the SHA-256 of a part of a file, or of the SHA-256 of several files."""
    digest = hashlib.sha256()
    if isinstance(data, np.ndarray):
        digest.update(f"{data.dtype.str} {data.shape} ".encode())
        digest.update(np.ascontiguousarray(data).data)
    elif isinstance(data, bytes):
        digest.update(data)
    else:
        digest.update(b"text\0" if isinstance(data, str) else b"parts\0")  # else a file could have the digest of a text
        for part in (data,) if isinstance(data, str) else data:
            encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(encoded) + encoded)
    return digest.digest()


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


def _read(folder: str, file: str) -> bytes:
    try:
        # Without a buffer, which would cost as much as the reading.
        with open(f"{folder}/{file}", "rb", buffering=0) as opened:  # noqa: PTH123 - once per file
            size = os.fstat(opened.fileno()).st_size
            if size > FILE_BYTES:
                raise InputRefusedError(f"has {size:,} bytes, more than the {FILE_BYTES:,} that one example may have")
            return opened.read()
    except OSError as error:
        raise InputRefusedError(f"cannot be read: {error.strerror}") from error


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
        files = tuple(hashlib.sha256(_read(str(folder), file)).digest() for file in item.files)
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
                "Bring it back (dvc checkout, or dvc repro --force --single-item fetch@NAME); if the change is meant, "
                f"write {checksums.SUMS} anew or remove it."
            )
