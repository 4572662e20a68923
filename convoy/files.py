"""Writes files and folders so that a reader finds the old one or the new one, never half of one.

A new file is written under another name and then takes its target's place by a rename, which a kill cannot divide.
Two names on one file system are needed for that, so the new file lies beside its target, as ``.<name>.partial``. A kill
leaves it there, and the next writer removes it. Names are fixed, since a random one would pile up after kills, and
``tempfile`` would make the file private to its user. So a file has one writer at a time; its readers need no lock.

``write_sealed`` puts a file's own SHA-256 into it, by which ``read_sealed`` notices any later change.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convoy.errors import BusyError, InputRefusedError, IntegrityError

SEAL = "sha256"


@contextmanager
def replacement(target: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Gives the path of a new file, which takes the place of ``target`` at the regular end.

    After an error ``target`` is what it was, and nothing of the new file stays.

    Args:
        target: the file to replace; it need not exist.
        folder: where the new file is written, on the file system of ``target``; beside it by default.
    """
    partial = (folder or target.parent) / f".{target.name}.partial"
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(target: Path, content: str | bytes, *, durable: bool = False, folder: Path | None = None) -> None:
    """Writes a file whole or not at all; text as UTF-8.

    Args:
        target: the file.
        content: all of it.
        durable: wait until the disk has it, so that a power cut cannot leave an empty file under the new name.
        folder: see ``replacement``.
    """
    with replacement(target, folder=folder) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_json(target: Path, content: Any, *, indent: int | None = None) -> None:
    """Writes ``content`` as JSON, whole or not at all."""
    write(target, json.dumps(content, indent=indent))


def write_sealed(target: Path, content: dict) -> None:
    """Writes ``content`` as JSON with its own SHA-256, whole or not at all."""
    write(target, json.dumps({**content, SEAL: _seal(content)}, indent=1, ensure_ascii=False))


def read_sealed(path: Path) -> dict:
    """Returns what ``write_sealed`` wrote.

    Raises:
        InputRefusedError: the file is missing: the stage did not run.
        IntegrityError: it is damaged.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.pop(SEAL, None) != _seal(content):
        raise IntegrityError(f"{path} was changed after it was written: it does not match its own SHA-256.")
    return content


def read_json(path: Path) -> dict:
    """Returns what a stage wrote about its result.

    Raises:
        InputRefusedError: the file is missing: the stage did not run.
        IntegrityError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputRefusedError(f"{path} is missing: run the stage that writes it.") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error


@contextmanager
def scratch_folder(cache: Path) -> Iterator[Path]:
    """Gives an empty folder in ``cache`` to one process at a time, and removes it at the end, whatever the end is.

    Raises:
        BusyError: another process has it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    scratch = cache / "scratch"
    try:
        with FileLock(cache / "lock", timeout=0):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except Timeout:
        raise BusyError(f"{cache.parent.parent / cache.name} is being written by another run; wait for it.") from None


def swap_folder(output: Path, target: Path) -> None:
    """Puts a finished folder into the place of ``target`` by renaming, so that neither is ever half there."""
    former = output.with_name(output.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if target.is_symlink() or target.is_file():
        target.unlink()  # a link to a folder elsewhere; what lies there is not ours to take away
    elif target.exists():
        target.rename(former)
    output.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def _seal(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
