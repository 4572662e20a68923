"""What every stage run of this checkout left behind: name, start, seconds, peak memory, exit status."""

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
