"""Reads volumes and clips: .npz (MedMNIST 3D), class folders of .npy files, of folders of frames, of GIFs and TIFFs."""

import re
from collections.abc import Iterable, Iterator

from convoy.errors import InputRefusedError
from stages.ingest.formats import containers, folders
from stages.ingest.formats.folders import ClassFolder, bad_name, printable
from stages.ingest.records import Item, Source

ALLOWED = (
    "Allowed: .npz with train_images (n, depth, height, width) and train_labels; <class>/<volume>.npy; "
    "<class>/<clip>/<frames>; <class>/<clip>.gif or .tif; the class folders also in train|val|test/."
)


def find(source: Source) -> Iterable[Item]:
    """Returns every example of ``source``, without decoding it.

    The layout is .npz files if there are any, else class folders. In these a file is a volume, and so is a folder:
    its pictures, in natural order (frame 2 before 10), are the frames.

    Raises:
        InputRefusedError: there are no examples, or a file is damaged.
    """
    tree = folders.walk(source.folder)
    chosen = folders.choose(source.folder, tree, source.files)
    items = containers.npz(source, list(chosen or tree.files), chosen, axes=3)
    if items is None:
        classes = (
            folders.chosen_classes(chosen, source.files) if chosen else folders.classes(source.folder, tree, "volume")
        )
        source.notes["layout"] = folders.layout_of(classes)
        items = [item for folder in classes for item in _in_folder(folder)]
    if items == []:
        found = ", ".join(folders.top(tree)) or "nothing"
        raise InputRefusedError(f"{source.folder} has no volume in a class folder. {ALLOWED} It has: {found}.")
    return items


def _in_folder(folder: ClassFolder) -> Iterator[Item]:
    """Yields the files of a class folder as volumes, and the folders under it."""
    clips: dict[str, list[str]] = {}
    for path in folder.files:
        clips.setdefault(path.rpartition("/")[0], []).append(path)
    for path in clips.pop(folder.path, []):
        yield folders.item(path, folder.label, folder.split)
    for path, frames in clips.items():
        broken = [frame for frame in frames if printable(frame) != frame]
        problem = f"{printable(broken[0])}: {bad_name(broken[0])}" if broken else None
        files = () if problem else tuple(sorted(frames, key=_natural))
        yield Item(printable(path), printable(folder.label), folder.split, files, problem=problem)


def _natural(path: str) -> list[tuple[int, int | str]]:
    """Sort key by which frame 2 comes before frame 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path)]
