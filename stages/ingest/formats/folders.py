"""Folders: what lies in them, and the class and the split that their names give to it."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConfigurationError, InputRefusedError
from stages.ingest.records import Item, natural

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
HIDDEN = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # what macOS and Windows do not show to their users
CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")  # steer a terminal, and end lines of tables
DOCUMENTS = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "sha256sums", "md5sums")


@dataclass(frozen=True)
class Tree:
    """The visible content of a folder; all paths relative to it, with ``/``, sorted.

    Attributes:
        files: every file but the documents at its top (README, LICENSE, SHA256SUMS ...).
        folders: every folder.
    """

    files: list[str]
    folders: list[str]


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose name is the class of what lies in it.

    Attributes:
        path: relative to the raw folder.
        label: its name.
        split: that it belongs to, if the raw data says so.
        files: in it and in folders under it, sorted.
    """

    path: str
    label: str
    split: str | None
    files: list[str]


def walk(root: Path) -> Tree:
    """Returns what is in ``root``, hidden files and folders aside.

    Raises:
        InputRefusedError: ``root`` is missing, or has a link that leads out of it, a link to a folder, or a file that
            is no regular one (a device, a pipe).
    """
    if not root.is_dir():
        raise InputRefusedError(f"{root} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    files, folders, waiting = [], [], [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name in HIDDEN:
                    continue
                path = prefix + name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    waiting.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
                else:
                    check_special(root, path)
                    files.append(path)
    files = [path for path in files if "/" in path or not path.lower().startswith(DOCUMENTS)]
    return Tree(sorted(files), sorted(folders))


def choose(root: Path, tree: Tree, globs: Mapping[str, str]) -> dict[str, str]:
    """Returns file -> split for the files of ``tree`` that ``globs`` (split -> pattern of ``Path.glob``) name.

    Raises:
        ConfigurationError: a pattern matches nothing, or two match the same file.
    """
    splits: dict[str, str] = {}
    known = set(tree.files)
    for split, pattern in globs.items():
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise ConfigurationError(f"files.{split} = {pattern!r} leads out of {root}.")
        try:  # a ** at the end would match folders only
            places = list(root.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
        except (ValueError, IndexError) as error:  # IndexError: of "." until Python 3.12
            raise ConfigurationError(f"files.{split} = {pattern!r} is no pattern: {error}.") from error
        found = known & {place.relative_to(root).as_posix() for place in places}
        if not found:
            raise ConfigurationError(
                f"files.{split} = {pattern!r} matches no file in {root}. It has: {', '.join(top(tree)) or 'nothing'}."
            )
        twice = sorted(found & splits.keys())
        if twice:
            raise ConfigurationError(f"files.{split} = {pattern!r} and files.{splits[twice[0]]} both match {twice[0]}.")
        splits |= dict.fromkeys(found, split)
    return {path: splits[path] for path in sorted(splits)}


def top(tree: Tree) -> list[str]:
    """Returns up to ten names at the top of the folder, folders with a slash, for messages."""
    names = [f"{path}/" for path in tree.folders if "/" not in path] + [path for path in tree.files if "/" not in path]
    return [printable(name) for name in names[:10]]


def printable(path: str) -> str:
    """Returns ``path`` with escapes for control characters and the bytes that are not UTF-8."""
    if path.isascii() and path.isprintable():
        return path
    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", path)


def check_name(root: Path, path: str) -> None:
    """Raises InputRefusedError for a path that is not ``printable``: Arrow opens no such file."""
    if printable(path) != path:
        raise InputRefusedError(f"{root}/{printable(path)}: {bad_name(path)}")


def bad_name(path: str) -> str:
    """Returns what is wrong with a path that is not ``printable``."""
    return f"its name {'has control characters' if CONTROL.search(path) else 'is not valid UTF-8'}: rename it"


def item(path: str, label: str, split: str | None) -> Item:
    """Returns the example that is the one file ``path``."""
    shown = printable(path)
    if shown != path:
        return Item(shown, printable(label), split, problem=bad_name(path))
    return Item(path, label, split, (path,))


def class_items(root: Path, tree: Tree, what: str) -> list[Item]:
    """Returns every file of ``classes`` as an example."""
    return _items(classes(root, tree, what))


def chosen_items(chosen: Mapping[str, str], globs: Mapping[str, str]) -> list[Item]:
    """Returns every file of ``chosen_classes`` as an example."""
    return _items(chosen_classes(chosen, globs))


def classes(root: Path, tree: Tree, what: str) -> list[ClassFolder]:
    """Returns the class folders: ``<class>/**/<file>`` or ``<split>/<class>/**/<file>``.

    A folder that is alone and holds nothing but folders is passed through, as in ``flower_photos/<class>/<file>``.
    Files beside the class folders are left out.

    Args:
        root: the raw folder; for messages.
        tree: what is in it.
        what: should be in the class folders, e.g. "picture"; for messages.

    Returns:
        The folders, sorted by what they lie in and by class (whole numbers first, by value).

    Raises:
        InputRefusedError: a class folder is empty, or there are other folders beside split folders.
    """
    children: dict[str, list[str]] = {}
    for path in tree.folders:
        children.setdefault(path.rpartition("/")[0], []).append(path)
    with_files = {path.rpartition("/")[0] for path in tree.files}
    base = ""
    while len(children.get(base, ())) == 1 and base not in with_files:
        [only] = children[base]
        if only in with_files or only not in children:
            break
        base = only
    tops = children.get(base, [])
    splits = {path: SPLIT_FOLDERS.get(path.rpartition("/")[2].lower()) for path in tops}
    if len(set(splits.values()) - {None}) < 2:  # one alone may be a class: a train is a vehicle
        found = _under(dict.fromkeys(tops), tree.files)
    elif None in splits.values():
        others = [printable(path) for path, split in splits.items() if split is None]
        raise InputRefusedError(
            f"{root} has split folders (train, val, test) and beside them {others}. Put class folders into the "
            "split folders, or give the split folders other names."
        )
    else:
        labels = {label: split for path, split in splits.items() for label in children.get(path, [])}
        found = _under(labels, tree.files)
    for (path, _), files in found.items():
        if not files:
            raise InputRefusedError(
                f"{root}/{printable(path)} is an empty class folder. Put {what}s into it, or remove it."
            )
    return _sorted(found)


def chosen_classes(chosen: Mapping[str, str], globs: Mapping[str, str]) -> list[ClassFolder]:
    """Returns the class folders of the files that params.yaml chose.

    The class is the folder that follows the fixed beginning of a pattern: ``train: seg_train/*/*.jpg`` makes
    ``seg_train/forest/1.jpg`` an example of ``forest``.

    Args:
        chosen: file -> split, from ``choose``.
        globs: split -> pattern.

    Raises:
        InputRefusedError: a file does not lie in such a folder.
    """
    fixed = {}  # split -> how many folders of its pattern are without a wildcard
    for split, pattern in globs.items():
        parts = pattern.split("/")
        fixed[split] = next((number for number, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    found: dict[tuple[str, str | None], list[str]] = {}
    for path, split in chosen.items():
        parts = path.split("/")
        if len(parts) < fixed[split] + 2:
            raise InputRefusedError(
                f"{printable(path)} (files.{split} = {globs[split]!r}) does not lie in a class folder. Allowed: a "
                "pattern like seg_train/*/*.jpg, whose first * is the class."
            )
        found.setdefault(("/".join(parts[: fixed[split] + 1]), split), []).append(path)
    return _sorted(found)


def layout_of(folders: list[ClassFolder]) -> str:
    """Returns in words where the class folders lie, for the notes of a source."""
    parents = sorted({printable(folder.path.rpartition("/")[0]) for folder in folders} - {""})
    return f"class folders in {', '.join(parents)}" if parents else "class folders"


def _items(folders: list[ClassFolder]) -> list[Item]:
    return [item(path, folder.label, folder.split) for folder in folders for path in folder.files]


def _sorted(found: Mapping[tuple[str, str | None], list[str]]) -> list[ClassFolder]:
    folders = [ClassFolder(path, path.rpartition("/")[2], split, files) for (path, split), files in found.items()]
    return sorted(folders, key=lambda folder: (folder.path.rpartition("/")[0], natural(folder.label)))


def _under(splits: Mapping[str, str | None], files: list[str]) -> dict[tuple[str, str | None], list[str]]:
    """Returns (folder, split) -> its files, for folders -> split that all lie equally deep."""
    depth = 1 + max((path.count("/") for path in splits), default=0)
    found: dict[tuple[str, str | None], list[str]] = {key: [] for key in splits.items()}
    for path in files:
        parts = path.split("/", depth)
        folder = "/".join(parts[:depth])
        if len(parts) > depth and folder in splits:
            found[folder, splits[folder]].append(path)
    return found


def check_special(root: Path, path: str) -> None:
    """Raises InputRefusedError unless ``path`` is a link to a regular file within ``root``."""
    place = root / path
    name = f"{root}/{printable(path)}"
    if not place.is_symlink():
        raise InputRefusedError(f"{name} is no regular file ({stat.filemode(place.lstat().st_mode)}). Remove it.")
    try:
        target = place.resolve()
    except (OSError, RuntimeError):  # until Python 3.13
        raise InputRefusedError(f"{name} is a link that leads to itself. Remove it.") from None
    if not target.is_relative_to(root.resolve()):
        raise InputRefusedError(f"{name} is a link that leads out of the folder, to {target}. Copy the file there.")
    if not target.is_file():
        raise InputRefusedError(f"{name} is a link to {target}, which is no file. Remove the link, or copy the files.")
