"""One at a time in a checkout: what works here now, or died here."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convoy.errors import BusyError

HERE = Path("data/.pipeline.json")


@contextmanager
def alone(what: str, died: Callable[[dict], None], place: Path = HERE, **facts: Any) -> Iterator[None]:
    """Keeps other pipelines, and workers of clusters, out of this checkout; or others out of another place.

    Args:
        what: goes on here: ``pipeline``, ``worker``, ``search of lenet5``.
        died: is given the facts of the one before, if that did not end.
        place: the file that says what goes on.
        facts: what to remember of this one.

    Raises:
        BusyError: another one is at work.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        before = json.loads(place.read_text()) if place.exists() else {}
        who = before.get("what", "pipeline")
        since = time.strftime("%H:%M:%S", time.localtime(before.get("started", 0)))
        raise BusyError(
            f"another {who} runs here, since {since}: process {before.get('pid')} on {before.get('host')}."
        ) from None
    try:
        if place.exists():
            died(json.loads(place.read_text()))
        facts |= {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        place.write_text(json.dumps(facts))
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()
