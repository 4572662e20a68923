"""Processes of tests: whether they are there."""

import time
from contextlib import suppress

import psutil


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def gone(pids, seconds=5):
    stop = time.monotonic() + seconds
    while time.monotonic() < stop and any(map(alive, pids)):
        time.sleep(0.02)
    return not any(map(alive, pids))
