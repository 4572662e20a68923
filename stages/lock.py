"""dvc.lock as it is read here: whole, or not at all.

``check`` reads it before DVC does, which writes it anew after every stage. What was cut off between two inputs of a
stage is not noticed: DVC then runs that stage again.
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.errors import IntegrityError

LOCK = Path("dvc.lock")
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
    if not LOCK.exists():
        return {}
    text = LOCK.read_text(encoding="utf-8", errors="replace")
    if found := CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise IntegrityError(f"{LOCK}, line {line}: {found[0]!r} marks a conflict that was not resolved. {ADVICE}")
    try:
        content = YAML(typ="safe", pure=True).load(text)
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
