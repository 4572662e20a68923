"""Reads pictures: class folders, tables of files, Parquet (Hugging Face), IDX (MNIST), CIFAR, .npz and .npy."""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from convoy.errors import InputRefusedError
from stages.ingest.formats import cifar, containers, folders, parquet, tables
from stages.ingest.formats.folders import Tree, printable
from stages.ingest.formats.splits import split_of
from stages.ingest.records import Item, Source

ALLOWED = (
    "Allowed: <class>/<picture>; train|val|test/<class>/<picture>; a table (.csv, .tsv, .jsonl, .parquet) with the "
    "columns path and label beside the pictures; .parquet with the columns image and label; IDX (MNIST), CIFAR, .npz "
    "(x_train and y_train, or train_images and train_labels), .npy (images and labels, or one file per class)."
)
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")


def find(source: Source) -> Iterable[Item]:
    """Returns every example of ``source``, without decoding it.

    The layout is the first of these that fits: IDX files, CIFAR, .npz, .npy, Parquet with pictures, a table with the
    columns path and label, class folders. .npz and .npy are read only where there are no picture files.

    Raises:
        InputRefusedError: none fits, or what fits is damaged.
    """
    tree = folders.walk(source.folder)
    chosen = folders.choose(source.folder, tree, source.files)
    files = list(chosen or tree.files)
    arrays = () if any(path.lower().endswith(PICTURE_ENDINGS) for path in files) else (containers.npz, containers.npy)
    for layout in (containers.idx, cifar.find, *arrays, _in_parquet):
        items = layout(source, files, chosen)
        if items is not None:
            if count := sum(path.lower().endswith(PICTURE_ENDINGS) for path in files):
                source.notes["unread"] = (
                    f"read as {source.notes['layout']}; {count:,} picture files beside them were not read"
                )
            return items
    items = _in_table(source, tree, files, chosen)
    if items is None:
        classes = (
            folders.chosen_classes(chosen, source.files) if chosen else folders.classes(source.folder, tree, "picture")
        )
        source.notes["layout"] = folders.layout_of(classes)
        items = [folders.item(path, folder.label, folder.split) for folder in classes for path in folder.files]
        if others := [path for path in files if path.lower().endswith((".npz", ".npy"))]:
            source.notes["unread"] = f"read as {source.notes['layout']}, not from {printable(others[0])}"
    if not items:
        found = ", ".join(folders.top(tree)) or "nothing"
        raise InputRefusedError(f"{source.folder} has no picture in a class folder. {ALLOWED} It has: {found}.")
    return items


def _in_parquet(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> Iterator[Item] | None:
    """Returns the pictures in the column ``image`` (bytes, or a struct with the field bytes) of Parquet files."""
    found = [file for file in files if file.endswith(".parquet") and _holds_bytes(source, file)]
    if not found:
        return None
    source.notes["layout"] = "Parquet"
    return chain.from_iterable(_rows(source, file, split_of(file, chosen)) for file in found)


def _holds_bytes(source: Source, file: str) -> bool:
    folders.check_name(source.folder, file)
    try:
        schema = pq.read_schema(source.folder / file)
    except parquet.PARQUET_ERRORS as error:
        raise InputRefusedError(f"{source.folder}/{file} is no Parquet file, or damaged: {error}") from error
    types = [inner for field in schema for inner in (field.type, *_fields(field.type))]
    return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in types)


def _fields(kind: pa.DataType) -> list[pa.DataType]:
    return [field.type for field in kind] if pa.types.is_struct(kind) else []


def _rows(source: Source, file: str, split: str | None) -> Iterator[Item]:
    for row in tables.rows(source, file, ("image", "label"), ("split",)):
        path, problem = f"{printable(file)}#{row.number}", row.problem
        picture = row.values.get("image")
        if isinstance(picture, dict):
            picture = picture.get("bytes")
        if problem is None and not isinstance(picture, bytes):
            problem = f"row {row.number}: no bytes of a picture"
        if problem is None and not row.values["label"].strip():
            problem = f"row {row.number}: the label is empty"
        if problem is not None:
            yield Item(path, None, split, problem=problem)
        else:
            yield Item(path, row.values["label"], row.values.get("split") or split, payload=picture)


def _in_table(source: Source, tree: Tree, files: Sequence[str], chosen: Mapping[str, str]) -> list[Item] | None:
    """Returns the pictures that the rows of tables name; None if no table has the columns path and label.

    A path lies relative to the table, else to the raw folder, else it is the name of one picture in any folder, with
    or without its ending.
    """
    found = tables.table_files(source, files)
    usable: list[tuple[str, Iterator[tables.Row]]] = []
    for table in found:
        rows = tables.rows(source, table, (), ("path", "label", "split"))
        first = list(islice(rows, 1))  # only now the header is read
        if {"path", "label"} <= source.notes["columns"].get(table, {}).keys():
            usable.append((table, chain(first, rows)))
        else:
            source.notes["columns"].pop(table, None)
            source.notes.setdefault("tables left out", []).append(printable(table))
    if not usable:
        return None
    source.notes["layout"] = "pictures with a table"
    places = _Places([file for file in tree.files if file not in found])
    items, named = [], set()
    for table, rows in usable:
        for row in rows:
            path, problem = (None, row.problem) if row.problem else places.find(table, row.values["path"])
            label, split = row.values.get("label"), row.values.get("split") or split_of(table, chosen)
            if not (problem or label.strip()):
                problem = f"line {row.number}: the label is empty"
            name = f"{printable(table)}#{row.number}" if path is None or path in named else path
            named.add(path)
            items.append(Item(name, label, split, () if problem else (path,), problem=problem))
    unnamed = [printable(path) for path in places.files if path not in named]
    if unnamed:
        source.notes["pictures that no row names"] = {"number": len(unnamed), "examples": unnamed[:5]}
    return items


class _Places:
    """Finds the files that tables name."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = dict.fromkeys(files)
        self._names: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        for path in files:
            name = posixpath.basename(path)
            self._names.setdefault(name, []).append(path)
            self._stems.setdefault(posixpath.splitext(name)[0], []).append(path)

    def find(self, table: str, name: str) -> tuple[str | None, str | None]:
        """Returns the path of the picture that ``table`` calls ``name``, or None and why there is none."""
        name = name.replace("\\", "/")
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
        if name.startswith("/") or beside.split("/")[0] == "..":
            return None, f"{name} leads out of the raw folder"
        for path in (beside, posixpath.normpath(name)):
            if path in self.files:
                return self._usable(path)
        for places in (self._names, self._stems):
            found = places.get(name, [])
            if len(found) == 1:
                return self._usable(found[0])
            if found:
                return None, f"{name} may be {found[0]} or {found[1]}: say which"
        return None, f"{name} does not exist"

    def _usable(self, path: str) -> tuple[str | None, str | None]:
        return (path, None) if printable(path) == path else (None, f"{printable(path)}: {folders.bad_name(path)}")
