"""dvc.lock as it is read here: whole, or not at all.

``check`` reads it before DVC does, which writes it anew after every stage, in place: a kill or a full disk leaves it
cut off or empty. So each stage that begins keeps a copy, and ``check`` takes it back. What was cut off between two
inputs of a stage is not noticed: DVC then runs that stage again.
"""

import os
import re
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.errors import IntegrityError

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/dvc.lock.whole")  # the copy
CUT = Path(".dvc/tmp/dvc.lock.cut")  # what it replaced
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
    """Keeps a copy if it is whole, for ``mend``: an empty one where there is none yet."""
    if not KEPT.parent.exists():
        return
    text = LOCK.read_text(encoding="utf-8", errors="replace") if LOCK.exists() else ""
    if KEPT.exists() and KEPT.read_text(encoding="utf-8") == text:
        return
    try:
        if LOCK.exists():
            _read(text)
    except IntegrityError:  # in a pipeline another stage may just have ended, and DVC be writing
        return
    _write(KEPT, text)


def mend() -> None:
    """Takes the copy back where DVC was ended while it wrote; what conflicts is for people, and stays.

    Raises:
        IntegrityError: as of ``stages``, where there is no copy, or the file has the marks of a conflict.
    """
    try:
        stages()
    except IntegrityError as damage:
        text = LOCK.read_text(encoding="utf-8", errors="replace")
        if CONFLICT.search(text) or not KEPT.exists():
            raise
        _write(CUT, text)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(KEPT.stat().st_mtime))
        if whole := KEPT.read_text(encoding="utf-8"):
            _write(LOCK, whole)
        else:
            LOCK.unlink()
        said, again = str(damage).removesuffix(ADVICE).strip(), "what it was" if whole else "not there, as"
        print(f"warning: {said} It is again {again} at {when}; what was there is in {CUT}.", flush=True)
    keep()


def _write(path: Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(text: str) -> dict[str, dict[str, Any]]:
    if found := CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise IntegrityError(f"{LOCK}, line {line}: {found[0]!r} marks a conflict that was not resolved. {ADVICE}")
    try:
        content = YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, MarkedYAMLError) else error
        raise IntegrityError(f"{LOCK}{where}: {problem}; it may have been cut off. {ADVICE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("stages", {}), dict):
        raise IntegrityError(f"{LOCK} is {'empty' if not text.strip() else 'no list of stages'}. {ADVICE}")
    entries = content.get("stages", {})
    for name, entry in entries.items():
        if not _is_whole(entry):
            line = text[: text.find(f"{name}:")].count("\n") + 1
            raise IntegrityError(f"{LOCK}, line {line}: the entry of {name} is not whole; it was cut off. {ADVICE}")
    return entries


def _is_whole(entry: Any) -> bool:
    """Whether a stage has its command, and all that it reads and writes a path and a checksum, of whatever name."""
    if not isinstance(entry, dict) or "cmd" not in entry:
        return False
    parts = [part for key in ("deps", "outs") for part in entry.get(key) or ()]
    return all(isinstance(part, dict) and "path" in part and len(part) > 1 for part in parts)
