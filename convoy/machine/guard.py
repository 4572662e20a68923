"""Runs a command so that nothing of it outlives who wanted it: ``python -m convoy.machine.guard COMMAND...``.

A guard reads its standard input, a pipe from that process, which never writes. When the pipe closes - because the
process closed it, or died of anything, SIGKILL included - the guard ends the command and all that it started: TERM, and
after GRACE seconds KILL. When the command itself ends, in whatever way, what it left behind is killed too: of a killed
``dvc`` the training goes on and writes into a folder that the next run has just deleted.

What the guard inherits - locks - it holds until the command is gone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GRACE = 3.0  # seconds between TERM and KILL


def start(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None, holding: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Starts ``command`` under a guard; its output comes line by line from ``stdout``.

    Args:
        command: program and arguments.
        env: the environment; by default that of this process.
        cwd: the working directory; by default that of this process.
        holding: file descriptors that stay open as long as the command runs, e.g. of locks.
    """
    return subprocess.Popen(
        [sys.executable, __file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the flow, which then closes the pipe, and not the guard
        pass_fds=holding,
        text=True,
        errors="replace",
        bufsize=1,
        env=env,
        cwd=cwd,
    )


def environment() -> dict[str, str]:
    """Returns the environment of a stage: our Python first, and plain lines as they come."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", "COLUMNS": "120"}


def end(guard: subprocess.Popen[str]) -> None:
    """Has a guard end its command; returns at once."""
    with contextlib.suppress(OSError):
        guard.stdin.close()


class Ended(threading.Event):
    """Is set when everything is to end; has the guards in ``over`` end what they run."""

    def __init__(self) -> None:
        super().__init__()
        self._guards: set[subprocess.Popen[str]] = set()

    def set(self) -> None:
        """Says that everything is to end; returns at once."""
        super().set()
        for guard in list(self._guards):
            end(guard)

    @contextlib.contextmanager
    def over(self, guard: subprocess.Popen[str]) -> Iterator[None]:
        """Ends what a guard runs when everything is to end, and at the end of the context; waits for it there."""
        self._guards.add(guard)
        if self.is_set():
            end(guard)
        try:
            yield
        finally:
            end(guard)
            guard.wait()
            self._guards.discard(guard)


def main(command: Sequence[str]) -> int:
    """Runs ``command``; returns its exit status, or 128 + the signal that ended it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    asked = threading.Event()  # to end it

    def end_softly(*_: object) -> None:
        asked.set()
        _signal(child.pid, signal.SIGTERM)

    def watch() -> None:
        while os.read(0, 1):
            pass
        end_softly()
        time.sleep(GRACE)
        _signal(child.pid, signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end_softly)
    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    stop = time.monotonic() + GRACE
    while asked.is_set() and _signal(child.pid, 0) and time.monotonic() < stop:  # what it started may take longer
        time.sleep(0.02)
    _signal(child.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _signal(group: int, number: int) -> bool:
    """Sends a signal to all of a group; returns whether there was anyone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
