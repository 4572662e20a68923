"""Ends a stage whose ``dvc`` died.

A killed ``dvc`` leaves the process of its stage running, and writing into a folder that the next run has just deleted
(dvc 3.67, seen). The flows have a guard for that; here it is for those who type ``dvc repro``.
"""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

SECONDS = 0.25  # between two looks
SHELLS = (
    "sh",
    "ash",
    "bash",
    "dash",
    "fish",
    "ksh",
    "zsh",
)  # DVC starts one of them; some stay, some become the stage


def watch() -> None:
    """Begins to watch, in a thread, if DVC started this process: it sets ``DVC_STAGE``."""
    if "DVC_STAGE" not in os.environ:
        return
    with suppress(psutil.Error):
        parents = (parent for parent in psutil.Process().parents() if parent.name().lstrip("-") not in SHELLS)
        if (dvc := next(parents, None)) is not None:
            threading.Thread(target=_watch, args=[dvc], daemon=True).start()


def _watch(dvc: psutil.Process) -> None:
    while _alive(dvc):
        time.sleep(SECONDS)
    end_children()
    os.kill(os.getpid(), signal.SIGKILL)  # anything else could wait for a step, or for a lock


def end_children() -> None:
    """Kills all that this process started, but for who ships what it said, and then ends by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(child.pid) == os.getsid(0):
                child.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
