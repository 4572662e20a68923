"""Shows how far a long loop is: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Thing = TypeVar("Thing")

EVERY = 10.0  # seconds between two plain lines


def track(things: Iterable[Thing], title: str, unit: str, total: int | None, size: int = 1) -> Iterator[Thing]:
    """Yields ``things``, each of which stands for ``size`` of ``total`` units (None: not known beforehand)."""
    console = Console()
    if console.is_terminal:
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            for thing in things:
                yield thing
                bar.advance(task, size)
        return
    started = said = time.monotonic()
    for done, thing in enumerate(things, 1):
        yield thing
        if (now := time.monotonic()) - said >= EVERY:
            said = now
            count = min(done * size, total) if total else done * size
            of = f" of {total:,}" if total else ""
            print(f"{title}: {count:,}{of} {unit}, {count / (now - started):,.0f} a second", flush=True)
