"""Who works in this checkout: what DVC wrote down of it, without those who are not there any more.

``dvc repro`` writes into ``.dvc/tmp/rwlock`` which process reads and writes what. DVC itself takes out only processes
whose number is free: a zombie, or a number that another process has got since, blocks for ever, and so does a file that
a kill has left cut off (dvc 3.67, ``dvc/rwlock.py``).
"""

import json
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import zc.lockfile

from convoy import files
from convoy.errors import BusyError

HELD = Path(".dvc/tmp/rwlock")
PATIENCE = 5.0  # seconds in which whoever writes that file is done


def free() -> None:
    """Takes those out who are dead.

    Raises:
        BusyError: another process writes results of this checkout; its number, command and start are named.
    """
    if not HELD.exists():
        return
    guard = guarded(Path(f"{HELD}.lock"))
    try:
        text, written = HELD.read_text(encoding="utf-8", errors="replace"), HELD.stat().st_mtime
        held = _read(text)
        held["read"] = {
            path: kept for path, infos in held["read"].items() if (kept := [one for one in infos if _by(one, written)])
        }
        held["write"] = {path: info for path, info in held["write"].items() if _by(info, written)}
        if text != (new := json.dumps(held)):
            files.write(HELD, new)
    finally:
        guard.close()
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for path, info in held["write"].items():
        if info["pid"] not in own and (process := _by(info, written)):
            since = datetime.fromtimestamp(process.create_time()).strftime("%H:%M:%S")
            raise BusyError(
                f"busy: process {process.pid} ({' '.join(process.cmdline())}) runs here since {since} and writes "
                f"{os.path.relpath(path)}. Wait for it, or end it; it is left as it is."
            )


def guarded(lock: Path) -> zc.lockfile.LockFile:
    """Takes a lock of DVC; whoever takes it closes it.

    Raises:
        BusyError: another process holds it all the time.
    """
    stop = time.monotonic() + PATIENCE
    while True:
        try:
            return zc.lockfile.LockFile(str(lock))
        except zc.lockfile.LockError:
            if time.monotonic() > stop:
                raise BusyError(f"busy: another process holds {lock} for {PATIENCE:.0f} s already.") from None
            time.sleep(0.05)


def _read(text: str) -> dict[str, dict[str, Any]]:
    """Returns who reads and writes what; nobody, if the file was cut off while it was written."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(text)
        reads = {path: [_entry(info) for info in infos] for path, infos in content.get("read", {}).items()}
        return {"read": reads, "write": {path: _entry(info) for path, info in content.get("write", {}).items()}}
    return {"read": {}, "write": {}}


def _entry(info: dict[str, Any]) -> dict[str, Any]:
    return {"pid": int(info["pid"]), "cmd": info["cmd"]}


def _by(info: dict[str, Any], written: float) -> psutil.Process | None:
    """Returns the process of an entry of a file of that time, if it is still the one that wrote it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(info["pid"])
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() > written + 1:  # clocks tick
            return None
        with suppress(psutil.AccessDenied):
            here, place = Path.cwd(), Path(process.cwd())
            return process if here == place or here in place.parents else None
        return process  # another user's: nothing more can be known
    return None
