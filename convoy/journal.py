"""The journal of a checkout: what every stage run left behind: name, start, seconds, peak memory, exit status."""

import json
from pathlib import Path
from typing import Any

JOURNAL = Path("data/journal.jsonl")


def add(entry: dict[str, Any]) -> None:
    """Adds a stage run."""
    with JOURNAL.open("a") as file:  # one short line is one write, so parallel stages do not mix
        file.write(json.dumps(entry) + "\n")


def size() -> int:
    """Returns the bytes of the journal, behind which later runs write."""
    return JOURNAL.stat().st_size if JOURNAL.exists() else 0


def entries(offset: int = 0) -> list[dict[str, Any]]:
    """Returns the entries behind the first ``offset`` bytes, oldest first."""
    if not JOURNAL.exists():
        return []
    with JOURNAL.open("rb") as file:
        file.seek(offset)
        return [json.loads(line) for line in file]
