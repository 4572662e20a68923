"""Shows how far a long loop or transfer is: a bar on a terminal, a plain line now and then elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Thing = TypeVar("Thing")

EVERY = 10.0  # seconds between two plain lines


def make_bar(*columns: ProgressColumn) -> Progress:
    """Returns a bar with a task's description before it and ``columns`` after it; without a terminal it is disabled."""
    console = Console()
    title = TextColumn("{task.description}", markup=False)  # a file's name may have brackets
    return Progress(title, BarColumn(), *columns, console=console, transient=True, disable=not console.is_terminal)


class _Display(ABC):
    """A bar, or plain lines: amounts of any unit; ``_describe`` gives the words of a line."""

    def __init__(self, title: str, total: int | None, *columns: ProgressColumn) -> None:
        self._title, self._bar = title, make_bar(*columns)
        self._task = self._bar.add_task(title, total=total)
        self.begin(total)

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, total: int | None, done: int = 0) -> None:
        """Starts the clock.

        Args:
            total: the whole amount; None if it is unknown.
            done: the amount that an earlier run did.
        """
        self._total, self._done, self._at_start = total, done, done
        self._started = self._said = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done)

    def advance(self, amount: int) -> None:
        """Adds an amount that is done."""
        self._done += amount
        self._bar.advance(self._task, amount)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            print(f"{self._title}: {self._describe((self._done - self._at_start) / (now - self._started))}", flush=True)

    @abstractmethod
    def _describe(self, speed: float) -> str: ...


class Transfer(_Display):
    """Bytes so far, speed, and time left if the total is known."""

    def __init__(self, title: str) -> None:
        super().__init__(title, None, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def _describe(self, speed: float) -> str:
        left = ""
        if self._total and speed:
            seconds = round((self._total - self._done) / speed)
            left = f" of {decimal(self._total)}, {seconds // 60}:{seconds % 60:02d} left"
        return f"{decimal(self._done)}{left}, {decimal(round(speed))}/s"


class _Count(_Display):
    """Units so far of a total, and how many a second."""

    def __init__(self, title: str, unit: str, total: int | None) -> None:
        columns = (MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(title, total, *columns)
        self._unit = unit

    def _describe(self, speed: float) -> str:
        count = min(self._done, self._total) if self._total else self._done  # the last block may be smaller
        of = f" of {self._total:,}" if self._total else ""
        return f"{count:,}{of} {self._unit}, {speed:,.0f} a second"


def track(things: Iterable[Thing], title: str, unit: str, total: int | None, size: int = 1) -> Iterator[Thing]:
    """Yields ``things``; each stands for ``size`` of ``total`` units (None: not known beforehand)."""
    with _Count(title, unit, total) as display:
        for thing in things:
            yield thing
            display.advance(size)
