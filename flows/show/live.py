"""The live board of a pipeline: every stage with its state, device, seconds and usual seconds."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from convoy import journal
from convoy.repo.graph import Node

LAST = 5  # runs of a stage whose median is its usual time
WAITING, QUEUED, RUNNING, NOT_RUN, FAILED = "waiting", "waits for a device", "running", "not run", "failed"
DONE = ("ran", "cached", "up to date")
STYLES = {RUNNING: "bold", QUEUED: "yellow", FAILED: "bold red", NOT_RUN: "red", "ran": "green", WAITING: "dim"}


@dataclass
class Row:
    """One stage; seconds since 1970, None before it begins or ends."""

    state: str = WAITING
    device: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has worked."""
        return (self.ended or time.time()) - self.started if self.started else 0.0


class Board:
    """Keeps the state of every stage; a terminal shows it twice a second, below the lines of the stages.

    Args:
        nodes: the stages, in order.
        slots: trainings that can run at once.
        console: where to draw.

    Attributes:
        rows: name -> its state.
        usual: name -> seconds that it usually takes, if it ever ran here.
    """

    def __init__(self, nodes: Mapping[str, Node], slots: int, console: Console | None = None) -> None:
        self.rows = {name: Row() for name in nodes}
        self.usual = find_usual_seconds()
        self._nodes, self._slots, self._started = nodes, slots, time.time()
        self._lock = threading.Lock()
        self._console = console or Console()
        self._live = Live(get_renderable=self.draw, console=self._console, refresh_per_second=2)

    def __enter__(self) -> "Board":
        if self.is_drawn:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_drawn:
            self._live.stop()

    @property
    def is_drawn(self) -> bool:
        """Whether a terminal shows the board; otherwise the log tells."""
        return self._console.is_terminal

    def set(self, name: str, state: str, device: str = "") -> None:
        """Notes a new state of a stage."""
        with self._lock:
            row = self.rows[name]
            row.state, row.device = state, device or row.device
            if state == RUNNING:
                row.started, row.ended = time.time(), None
            elif row.started and row.ended is None:
                row.ended = time.time()

    def say(self, name: str, line: str) -> None:
        """Prints a line of a stage above the table."""
        if self.is_drawn:
            self._console.print(Text.assemble((f"{name}  ", "cyan"), line), soft_wrap=True)

    def finish(self) -> None:
        """Marks the stages that have not begun: they will not run."""
        for name, row in self.rows.items():
            if row.state in (WAITING, QUEUED):
                self.set(name, NOT_RUN)

    def draw(self) -> Group:
        """Returns the table, and under it the number of finished stages and the time left."""
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("stage", "state", "device", "seconds", "usually"):
            table.add_column(heading, justify="right" if heading in ("seconds", "usually") else "left", no_wrap=True)
        with self._lock:
            for name, row in self.rows.items():
                usual = self.usual.get(name)
                table.add_row(
                    name,
                    Text(row.state, STYLES.get(row.state, "")),
                    row.device,
                    f"{row.seconds:.0f}" if row.started else "",
                    f"{usual:.0f}" if usual is not None else "",
                )
            done = sum(row.state in DONE for row in self.rows.values())
            left = self.estimate_left()
        text = f"{done} of {len(self.rows)} done, {_clock(time.time() - self._started)}"
        if left is not None and done < len(self.rows):
            text += f", about {_clock(left)} left"
        return Group(table, Text(text))

    def estimate_left(self) -> float | None:
        """Returns the seconds that are left, as if every stage took its usual time; None if one never ran.

        The longest way through what is left, or the trainings that are left spread over the slots, if that is longer.
        """
        ways: dict[str, float] = {}
        trainings = 0.0
        for name, row in self.rows.items():
            seconds = 0.0
            if row.state in (WAITING, QUEUED, RUNNING):
                if name not in self.usual:
                    return None
                seconds = max(0.0, self.usual[name] - row.seconds)
            needs = [ways[need] for need in self._nodes[name].needs if need in ways]
            ways[name] = seconds + max(needs, default=0.0)
            trainings += seconds if self._nodes[name].group == "train" else 0.0
        return max([trainings / self._slots, *ways.values()])


def find_usual_seconds() -> dict[str, float]:
    """Returns the median seconds of the last runs of every stage that ended well."""
    taken: dict[str, list[float]] = defaultdict(list)
    for entry in journal.entries():
        if entry["status"] == 0:
            taken[entry["stage"]].append(entry["seconds"])
    return {stage: statistics.median(seconds[-LAST:]) for stage, seconds in taken.items()}


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
