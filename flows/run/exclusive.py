"""One activity at a time in a checkout, and how the last one ended."""

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

CHECKOUT = Path("data/.pipeline.json")


@contextmanager
def claim(activity: str, on_crash: Callable[[dict], None], place: Path = CHECKOUT, **facts: Any) -> Iterator[None]:
    """Keeps other pipelines, and workers of clusters, out of this checkout; or others out of another place.

    Args:
        activity: its name: ``pipeline``, ``worker``, ``search of lenet5``.
        on_crash: receives the facts of the former activity, if that did not end.
        place: the file that describes the activity.
        facts: further facts of this activity.

    Raises:
        BusyError: another activity runs.
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
            on_crash(json.loads(place.read_text()))
        facts |= {"what": activity, "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        place.write_text(json.dumps(facts))
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()
