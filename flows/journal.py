"""What every stage run of this machine left behind: name, start, seconds, peak memory, exit status."""

import json

from stages.__main__ import JOURNAL


def size() -> int:
    """Returns the bytes of the journal, behind which later runs write."""
    return JOURNAL.stat().st_size if JOURNAL.exists() else 0


def entries(offset: int = 0) -> list[dict]:
    """Returns the entries behind the first ``offset`` bytes, oldest first; ``stages/__main__.py`` writes them."""
    if not JOURNAL.exists():
        return []
    with JOURNAL.open("rb") as file:
        file.seek(offset)
        return [json.loads(line) for line in file]


def append(entry: dict) -> None:
    """Notes a stage that another clone ran."""
    with JOURNAL.open("a") as file:
        file.write(json.dumps(entry) + "\n")
