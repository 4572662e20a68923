"""Shows how far a transfer of bytes is: a live line on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

EVERY = 10.0  # seconds between two plain lines


class Progress:
    """Bytes so far, speed, and time left where the total is known."""

    def __init__(self, title: str) -> None:
        self._title = title
        console = Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None)
        self._total: int | None = None
        self._done = self._at_start = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, total: int | None, done: int = 0) -> None:
        """Sets the size, None if unknown, and how much of it an earlier run got."""
        self._total, self._done, self._at_start = total, done, done
        self._started = self._said = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done)

    def advance(self, count: int) -> None:
        """Adds ``count`` bytes."""
        self._done += count
        self._bar.advance(self._task, count)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            speed = (self._done - self._at_start) / (now - self._started)
            left = ""
            if self._total and speed:
                seconds = round((self._total - self._done) / speed)
                left = f" of {decimal(self._total)}, {seconds // 60}:{seconds % 60:02d} left"
            print(f"{self._title}: {decimal(self._done)}{left}, {decimal(round(speed))}/s", flush=True)
