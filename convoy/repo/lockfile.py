"""Reads dvc.lock whole, or not at all.

``check`` reads it before DVC does. DVC rewrites it in place after every stage, so a kill or a full disk leaves it
cut off or empty. So each stage keeps a copy when it begins, and ``check`` restores it. People mend any other damage.
A cut right behind an input or output goes unnoticed: DVC then runs that stage and those behind it again, or takes their
results from its cache.
"""

import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import zc.lockfile
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from convoy import files
from convoy.errors import IntegrityError
from convoy.repo import busy

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/dvc.lock.whole")  # the copy
CUT = Path(".dvc/tmp/dvc.lock.cut")  # what it replaced
NONE = "# there was no dvc.lock yet\n"  # as a copy
WRITES = Path(".dvc/tmp/lock")  # held by DVC while it writes dvc.lock; not while a stage runs
CONFLICT = re.compile(r"^(<{7}|={7}|>{7}|\|{7})", re.MULTILINE)
ADVICE = (
    "It is left as it is. Take the last whole one back (git checkout dvc.lock), or remove it: what DVC's cache has is "
    "not computed again."
)


def stages() -> dict[str, dict[str, Any]]:
    """Returns what dvc.lock has of every stage; nothing if there is none.

    Raises:
        IntegrityError: it is empty, cut off, no YAML, or has the marks of a conflict; the line is named.
    """
    return _read(LOCK.read_text(encoding="utf-8", errors="replace")) if LOCK.exists() else {}


def keep() -> None:
    """Keeps a copy for ``mend`` if it is whole, and nobody writes it; a stage does not fail for want of it."""
    if not KEPT.parent.exists():
        return
    with suppress(OSError, zc.lockfile.LockError, IntegrityError):
        guard = zc.lockfile.LockFile(str(WRITES))
        try:
            text = LOCK.read_text(encoding="utf-8") if LOCK.exists() else NONE
            if not (KEPT.exists() and KEPT.read_text(encoding="utf-8") == text):
                if text != NONE:
                    _read(text)
                _write(KEPT, text)
        finally:
            guard.close()


def mend() -> None:
    """Takes the copy back where DVC was ended while it wrote.

    Raises:
        IntegrityError: as for ``stages``, where no copy exists, or the file was not cut off.
        BusyError: a process holds DVC's lock and may be writing.
    """
    try:
        stages()
    except CutOffError:
        if KEPT.exists():
            guard = busy.guarded(WRITES)
            try:
                _mend()
            finally:
                guard.close()
        else:
            raise
    keep()


def _mend() -> None:
    try:
        stages()  # whoever held the lock may have written it by now
    except CutOffError as damage:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(KEPT.stat().st_mtime))
        shutil.copyfile(LOCK, CUT)
        whole = KEPT.read_text(encoding="utf-8")
        if whole == NONE:
            LOCK.unlink()
        else:
            _write(LOCK, whole)
        said, again = str(damage).removesuffix(ADVICE).strip(), "not there, as" if whole == NONE else "what it was"
        print(f"warning: {said} It is again {again} at {when}; what was there is in {CUT}.", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    files.write(path, text, durable=True, folder=KEPT.parent)  # only one process has DVC's lock


class CutOffError(IntegrityError):
    """The file ends before its end."""


def _read(text: str) -> dict[str, dict[str, Any]]:
    if found := CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise IntegrityError(f"{LOCK}, line {line}: {found[0]!r} marks a conflict that was not resolved. {ADVICE}")
    if not text.strip():
        raise CutOffError(f"{LOCK} is empty. {ADVICE}")
    if not text.endswith("\n"):
        raise CutOffError(f"{LOCK}, line {len(text.splitlines())}: it was cut off. {ADVICE}")
    try:
        content = YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, MarkedYAMLError) else error
        raise IntegrityError(f"{LOCK}{where}: {problem}; it may have been cut off. {ADVICE}") from error
    if isinstance(content, dict) and content.get("stages") is None:
        raise CutOffError(f"{LOCK} has no stages; it was cut off. {ADVICE}")
    if not isinstance(content, dict) or not isinstance(content["stages"], dict):
        raise IntegrityError(f"{LOCK} is no list of stages. {ADVICE}")
    entries = content["stages"]
    for name, entry in entries.items():
        if not _is_whole(entry):
            line = text[: text.find(f"{name}:")].count("\n") + 1
            kind = CutOffError if name == list(entries)[-1] else IntegrityError
            raise kind(f"{LOCK}, line {line}: the entry of {name} is not whole; it was cut off. {ADVICE}")
    return entries


def _is_whole(entry: Any) -> bool:
    """Whether a stage has its command, and all that it reads and writes a path and a checksum, of whatever name."""
    if not isinstance(entry, dict) or "cmd" not in entry or None in entry.values():
        return False
    parts = [part for key in ("deps", "outs") for part in entry.get(key) or ()]
    files = entry.get("params") or {}
    return all(
        isinstance(part, dict) and "path" in part and set(part) - {"path", "hash"} and None not in part.values()
        for part in parts
    ) and not (isinstance(files, dict) and None in files.values())
