"""A folder or file of this machine as a source: what changed is copied, what did not is left as it is."""

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from convoy.checksums import SUMS, is_ignored, sha256
from convoy.errors import InputRefusedError, ServiceError
from convoy.machine.progress import Transfer
from stages.fetch.part import need_room


def synchronise(
    source: Path, target: Path, staging: Path, former: Mapping[str, str]
) -> tuple[dict[str, tuple[Path | None, str]], set[str]]:
    """Copies into ``staging`` each file of ``source`` that differs in size or time of change from that in ``target``.

    Args:
        source: a folder, or one file.
        target: data/raw/<dataset>, which is only read.
        staging: for the copies. What a killed run left there is used.
        former: SHA-256 of the files of ``target``, as far as known; others are read.

    Returns:
        relative path -> (copy, or None where ``target`` has it already; SHA-256); and the paths of all folders.

    Raises:
        InputRefusedError: a link that leaves the folder or runs in a circle, a device, or something unreadable.
        ServiceError: there is no room for the copies, or a file changed while it was copied.
    """
    files, folders = {source.name: source}, set()
    if source.is_dir():
        files = {}
        for name, path in _walk(source, source.resolve(), ()):
            if path is None:
                folders.add(name)
            elif name != SUMS:
                files[name] = path
    changed = {name: path for name, path in files.items() if not _same(path, target / name)}
    result = {name: (None, former.get(name) or sha256(target / name)) for name in files.keys() - changed.keys()}
    sizes = {name: path.stat().st_size for name, path in changed.items() if not _same(path, staging / name)}
    staging.mkdir(parents=True, exist_ok=True)
    need_room(sum(sizes.values()), staging)
    with Transfer(str(source)) as progress:
        progress.begin(sum(sizes.values()))
        for name, path in changed.items():
            copy = staging / name
            if name in sizes:
                _copy(path, copy)
                progress.advance(sizes[name])
            result[name] = (copy, sha256(copy))
    return result, folders


def _walk(folder: Path, root: Path, above: tuple[Path, ...], prefix: str = "") -> Iterator[tuple[str, Path | None]]:
    """Yields (relative path, file; None for a folder); links are followed inside ``root`` only."""
    above = (*above, folder.resolve())
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        raise InputRefusedError(f"{folder} cannot be read: no permission.") from None
    for entry in entries:
        name, path = prefix + entry.name, Path(entry.path)
        if is_ignored(entry.name):
            continue
        if entry.is_symlink():
            try:
                real = path.resolve(strict=True)
            except (OSError, RuntimeError):
                raise InputRefusedError(f"{path} is a link to {path.readlink()}, which does not exist.") from None
            if not real.is_relative_to(root):
                raise InputRefusedError(
                    f"{path} is a link to {real}, outside {root}. Put the file itself there, or take the link away."
                )
            if real in above:
                raise InputRefusedError(f"{path} is a link to {real}, a folder that it lies in.")
        if entry.is_dir():
            yield name, None
            yield from _walk(path, root, above, f"{name}/")
        elif entry.is_file():
            yield name, path
        else:
            kind = stat.S_IFMT(entry.stat().st_mode)
            word = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
            raise InputRefusedError(f"{path} is {word}, not a file. Take it away.")


def _same(one: Path, other: Path) -> bool:
    """Whether both are files of one size, changed at one time; links count as what they point to."""
    try:
        a, b = one.stat(), other.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(b.st_mode) and (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def _copy(path: Path, copy: Path) -> None:
    """Copies content and times; the time of change comes last, so an unfinished copy is not taken for a whole one."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)  # an older copy may be read-only, as its source was
    try:
        shutil.copy2(path, copy)
    except PermissionError:
        raise InputRefusedError(f"{path} cannot be read: no permission.") from None
    if not _same(path, copy):
        copy.unlink()
        raise ServiceError(f"{path} changed while it was copied. Run again when nothing writes there any more.")
