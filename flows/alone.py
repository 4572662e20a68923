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

from stages.errors import BusyError

HERE = Path("data/.pipeline.json")


@contextmanager
def alone(what: str, died: Callable[[dict], None], **facts: Any) -> Iterator[None]:
    """Keeps other pipelines, and workers of clusters, out of this checkout.

    Args:
        what: goes on here: ``pipeline``, ``worker``.
        died: is given the facts of the one before, if that did not end.
        facts: what to remember of this one.

    Raises:
        BusyError: another one is at work.
    """
    HERE.parent.mkdir(exist_ok=True)
    lock = FileLock(HERE.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        before = json.loads(HERE.read_text()) if HERE.exists() else {}
        who = before.get("what", "pipeline")
        since = time.strftime("%H:%M:%S", time.localtime(before.get("started", 0)))
        raise BusyError(
            f"another {who} runs here, since {since}: process {before.get('pid')} on {before.get('host')}."
        ) from None
    try:
        if HERE.exists():
            died(json.loads(HERE.read_text()))
        facts |= {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        HERE.write_text(json.dumps(facts))
        yield
    finally:
        HERE.unlink(missing_ok=True)
        lock.release()
