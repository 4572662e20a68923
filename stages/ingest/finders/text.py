"""Reads texts with a class: tables, a file per class, folders per class, or lines that begin with their class."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import encodings
from stages.ingest.formats import folders, tables, text_files
from stages.ingest.formats.archives import DOCUMENTATION
from stages.ingest.formats.compressed import bare
from stages.ingest.formats.folders import Tree
from stages.ingest.formats.splits import PREFIX, split_of
from stages.ingest.records import Item, Source, class_of

CLASS_FILES = 200  # files of one class each; more are texts that should lie in class folders
ONE_TEXT = re.compile(r"(^|/)[^./]+$|\.txt$", re.I)  # in class folders: .txt, or a name without an ending
UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # folders beside the class folders: texts to learn words from (IMDB)
FORMS = [  # of lines that begin with their class: fastText, TREC, any
    re.compile(form) for form in (r"__label__(\S+)\s+(.+)", r"([^\s:]+:\S+)\s+(.+)", r"(\S+)\s+(.+)")
]
LABELLED = re.compile(r"__label__\S+\s+\S|[A-Z]+:\w+\s+\S")  # what is taken for one without the ending .label
HEAD = 100  # lines that are looked at for that


def find(source: Source) -> Iterable[Item]:
    """Returns every example of ``source``, in the first of these layouts that the folder has.

    1. Tables (see ``tables.py``) with the columns text, label and, if there is one, split.
    2. ``<class>/**/<text>.txt``, also below train, val and test; a folder unsup is left out.
    3. ``.label`` files, or files whose lines begin with their class: ``LOC:city What is ...`` (TREC) or
       ``__label__spam Win ...`` (fastText). The class ends at the colon; ``columns: {label: fine}`` takes the whole.
    4. A file per class, a text per line, also below train, val and test: ``pos.txt`` and ``neg.txt``; the class is the
       name without ending, or, if that is the same in all, the ending: ``rt-polarity.pos`` and ``rt-polarity.neg``.

    The split of a file is that of ``files`` in params.yaml, which are then the only ones read, or of the word with
    which its name or its folder begins. Blank lines are no examples.

    Raises:
        ConfigurationError: the encoding is unknown, or the columns do not fit.
        InputRefusedError: the folder has none of the layouts, or a file is damaged; also while the examples are read.
    """
    encodings.check(source.encoding)
    tree = folders.walk(source.folder)
    chosen = folders.choose(source.folder, tree, source.files)
    files = [file for file in chosen or tree.files if not DOCUMENTATION.search(file.rpartition("/")[2])]
    if found := tables.table_files(source, files):
        _note(source, "tables", set(files) - set(found))
        return (item for file in found for item in _table_items(source, file, split_of(file, chosen)))
    if found := _folder_items(source, tree, chosen):
        return found
    if len(files) > CLASS_FILES:
        raise InputRefusedError(
            f"{source.folder} has {len(files):,} files and no class folders. Allowed: <class>/<text>.txt, or up to "
            f"{CLASS_FILES} files of a class each. Found at its top: {folders.top(tree)}"
        )
    if labelled := _labelled_files(source, files):
        _check_columns(source, ("coarse", "fine"))
        _note(source, "lines that begin with their class", set(files) - set(labelled))
        return (item for file in labelled for item in _labelled_items(source, file, split_of(file, chosen)))
    _check_columns(source, ())
    classes = _class_files(source, files, chosen)
    if not classes:
        raise InputRefusedError(
            f"{source.folder} has no texts. Allowed: tables ({', '.join(tables.SUFFIXES)}), <class>/<text>.txt, "
            f"<class>.txt with a text per line, or lines <class> <text>. Found at its top: {folders.top(tree)}"
        )
    _note(source, "a file per class", set(files) - set(classes))
    return (item for file in classes for item in _class_items(source, file, *classes[file]))


def _table_items(source: Source, file: str, split: str | None) -> Iterator[Item]:
    for row in tables.rows(source, file, ("text", "label"), ("split",)):
        path = f"{folders.printable(file)}#{row.number}"
        if row.problem:
            yield Item(path, None, split, problem=row.problem)
        else:
            yield _item(path, row.values["label"], row.values.get("split", split), row.values["text"])


def _item(path: str, label: str, split: str | None, text: str) -> Item:
    name, problem = class_of(label)
    return Item(path, name, split, payload=None if problem else text, problem=problem)


def _folder_items(source: Source, tree: Tree, chosen: dict[str, str]) -> list[Item]:
    """Returns the texts of class folders; [] if there are none."""
    unlabelled = tuple(f"{path}/" for path in tree.folders if path.rpartition("/")[2].lower() in UNLABELLED)
    texts = [path for path in chosen or tree.files if "/" in path and ONE_TEXT.search(path)]
    texts = [path for path in texts if not path.startswith(unlabelled)]
    if not texts:
        return []
    if not chosen:
        classes = [path for path in tree.folders if not f"{path}/".startswith(unlabelled)]
        items = folders.class_items(source.folder, Tree(texts, classes), "text")
    elif any(re.search(r"[*?\[][^/]*/", pattern) for pattern in source.files.values()):
        items = folders.chosen_items({path: chosen[path] for path in texts}, source.files)
    else:
        return []  # each file that is named is a class, or lines that begin with theirs
    if items:
        _check_columns(source, ())
        _note(source, "class folders", {*(chosen or tree.files)} - {item.path for item in items})
    return items


def _labelled_files(source: Source, files: Sequence[str]) -> list[str]:
    """Returns the files whose lines begin with their class."""

    def looks_labelled(file: str) -> bool:
        head = [line for _, line in islice(_lines(source, file), HEAD)]
        return bool(head) and all(LABELLED.match(line) for line in head)

    return [file for file in files if file.lower().endswith(".label") or looks_labelled(file)]


def _labelled_items(source: Source, file: str, split: str | None) -> Iterator[Item]:
    fine = source.columns.get("label") == "fine"
    form = None
    name = folders.printable(file)
    for number, line in _lines(source, file):
        form = form or next((form for form in FORMS if form.match(line)), FORMS[-1])  # one for all lines of a file
        match = form.match(line)
        if match:
            yield _item(f"{name}#{number}", match[1] if fine else match[1].partition(":")[0], split, match[2])
        else:
            problem = f"line {number}: does not begin like the first line, or has nothing after its class"
            yield Item(f"{name}#{number}", None, split, problem=problem)


def _class_files(source: Source, files: Sequence[str], chosen: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """Returns file -> (class, split) of the files at the top and in split folders.

    Raises:
        InputRefusedError: there is one file alone, or a name leaves no class.
    """
    splits = {file: split_of(file, chosen) for file in files}
    if not chosen and len(set(splits.values()) - {None}) < 2:  # one alone may be a class: a train is a vehicle
        splits = dict.fromkeys(files)
    names: dict[str, tuple[str, str]] = {}  # file -> name without split, and its ending
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder and splits[file] is None:
            continue
        if splits[file] and PREFIX.match(name):
            name = PREFIX.sub("", name, count=1).lstrip("-_.")
        stem, _, ending = bare(name).rpartition(".")
        names[file] = (stem, ending) if stem else (ending, "")
    if len(names) == 1:
        [file] = names
        raise InputRefusedError(
            f"{source.folder / file} alone would be one class; at least two are needed. If it is a table without a "
            "header, with tabs, say which columns are what, from 0: columns: {label: 0, text: 1}."
        )
    same = len({stem for stem, _ in names.values()}) == 1
    found = {file: (ending if same else stem, splits[file]) for file, (stem, ending) in names.items()}
    if nameless := [file for file, (label, _) in found.items() if not label]:
        raise InputRefusedError(f"{source.folder / nameless[0]}: its name says no class, e.g. pos.txt or train.pos.")
    return found


def _class_items(source: Source, file: str, label: str, split: str | None) -> Iterator[Item]:
    name = folders.printable(file)
    return (_item(f"{name}#{number}", label, split, line) for number, line in _lines(source, file))


def _lines(source: Source, file: str) -> Iterator[tuple[int, str]]:
    """Yields (number, line) of the lines that are not blank."""
    for number, line in text_files.lines(source.folder / file, text_files.encoding_of(source, file)):
        if line.strip():
            yield number, line


def _check_columns(source: Source, labels: Sequence[str]) -> None:
    """Raises ConfigurationError where the columns of params.yaml are none that the layout has."""
    if any(role != "label" or name not in labels for role, name in source.columns.items()):
        allowed = f"label: {' or '.join(labels)}" if labels else "none"
        raise ConfigurationError(
            f"columns: {dict(source.columns)} is for tables; {source.folder} has none. Allowed here: {allowed}."
        )


def _note(source: Source, layout: str, left_out: Iterable[str]) -> None:
    source.notes["layout"] = layout
    if names := sorted(map(folders.printable, left_out)):
        source.notes["left_out"] = f"{len(names)} files: {', '.join(names[:10])}"
