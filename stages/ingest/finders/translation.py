"""Reads pairs of sentences: tables with source and target, or two files with the same sentences line by line."""

from collections.abc import Iterable, Iterator

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import encodings
from convoy.kinds.translation import SIDES
from stages.ingest.formats import folders, tables, text_files
from stages.ingest.formats.archives import DOCUMENTATION
from stages.ingest.formats.compressed import bare
from stages.ingest.formats.splits import split_of
from stages.ingest.records import Item, Source


def find(source: Source) -> Iterable[Item]:
    """Returns every pair of ``source``, in one of these layouts.

    1. Tables (see ``tables.py``) with the columns source, target and, if there is one, split.
    2. Parallel files: ``train.en.gz`` and ``train.de.gz``; ``columns: {source: en, target: de}`` names their
       endings; the n-th lines of both are a pair. Files with other endings are left out.

    The split of a file is that of ``files`` in params.yaml, which are then the only ones read, or of the word with
    which its name or its folder begins.

    Raises:
        ConfigurationError: the encoding is unknown, or the columns are not given, or do not fit.
        InputRefusedError: neither layout was found, two parallel files differ in their number of lines, or a file is
            damaged; also while the pairs are read.
    """
    encodings.check(source.encoding)
    tree = folders.walk(source.folder)
    chosen = folders.choose(source.folder, tree, source.files)
    files = [file for file in chosen or tree.files if not DOCUMENTATION.search(file.rpartition("/")[2])]
    if found := tables.table_files(source, files):
        source.notes["layout"] = "tables"
        return (item for file in found for item in _table_items(source, file, split_of(file, chosen)))
    pairs = _parallel(source, files)
    source.notes["layout"] = "parallel files"
    return (item for pair in pairs for item in _parallel_items(source, *pair, split_of(pair[0], chosen)))


def _table_items(source: Source, file: str, split: str | None) -> Iterator[Item]:
    for row in tables.rows(source, file, SIDES, ("split",)):
        path = f"{folders.printable(file)}#{row.number}"
        if row.problem:
            yield Item(path, None, split, problem=row.problem)
        else:
            pair = (row.values["source"], row.values["target"])
            yield Item(path, None, row.values.get("split", split), payload=pair)


def _parallel(source: Source, files: list[str]) -> list[tuple[str, str]]:
    """Returns the pairs of parallel files."""
    endings: dict[str, dict[str, str]] = {}  # ending -> what is before it -> file
    for file in files:
        stem, _, ending = bare(file).removesuffix(".txt").rpartition(".")
        if stem and "/" not in ending:
            endings.setdefault(ending, {})[stem] = file
    shown = ", ".join(sorted(endings)) or f"none; at its top there are {folders.top(folders.walk(source.folder))}"
    if source.columns.keys() != set(SIDES):
        raise ConfigurationError(
            f"columns: {dict(source.columns)} has to say which of the parallel files in {source.folder} are the source "
            f"and which the target, by their endings: columns: {{source: en, target: de}}. Endings found: {shown}."
        )
    sides = [endings.get(str(source.columns[side]), {}) for side in SIDES]
    for side, found in zip(SIDES, sides, strict=True):
        if not found:
            name = source.columns[side]
            raise InputRefusedError(
                f"{source.folder} has no file that ends with .{name} ({side}). Endings found: {shown}."
            )
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        file = sides[0].get(alone[0]) or sides[1][alone[0]]
        raise InputRefusedError(f"{source.folder / file} has no partner: {alone[0]} exists in one language only.")
    return [(sides[0][stem], sides[1][stem]) for stem in sorted(sides[0])]


def _parallel_items(source: Source, first: str, second: str, split: str | None) -> Iterator[Item]:
    paths = [(source.folder / file, text_files.encoding_of(source, file)) for file in (first, second)]
    counts = [sum(1 for _ in text_files.lines(*path)) for path in paths]
    if counts[0] != counts[1]:
        raise InputRefusedError(
            f"{paths[0][0]} has {counts[0]:,} lines, {paths[1][0]} {counts[1]:,}: they do not belong together line "
            "by line."
        )
    name = folders.printable(first)
    for (number, left), (_, right) in zip(*(text_files.lines(*path) for path in paths), strict=True):
        yield Item(f"{name}#{number}", None, split, payload=(left, right))
