"""Brings one stage of this checkout up to date: ``dvc repro --single-item`` in a process of its own."""

import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from subprocess import Popen

from convoy import journal
from convoy.errors import ServiceError
from convoy.machine import guard
from convoy.machine.workers import cores
from convoy.secrets import redacted
from flows.run import devices

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
MEMORY = re.compile(r"MemoryError|ResourceExhausted|CUDA_ERROR_OUT_OF_MEMORY|[Oo]ut of memory")
# Of dvc: what became of a stage.
RAN = re.compile(r"Running stage '(.+)':")
EXITED = re.compile(r"exited with (-?\d+)")
CACHED = re.compile(r"Stage '(.+)' is cached - skipping run")


@dataclass(frozen=True)
class Wanted:
    """A stage that is to be brought up to date.

    Attributes:
        stage: DVC's name of it.
        devices: how many it wants for itself; 0: it does not train.
        seconds: how long it will probably take.
        force: run it even if nothing changed.
    """

    stage: str
    devices: int = 0
    seconds: float = 0.0
    force: bool = False


@dataclass(frozen=True)
class Listener:
    """Who is told how it goes.

    Attributes:
        waits: it waits for a device.
        begins: it begins, on the device named; "" for none.
        says: it printed a line.
    """

    waits: Callable[[], None]
    begins: Callable[[str], None]
    says: Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        state: ``ran``, ``cached`` or ``up to date``; of a failed one whether it came to run.
        status: its own exit status; 0 where all is well, None where it was killed.
        why: what went wrong.
    """

    state: str
    status: int | None = 0
    why: str = ""


ENDED = Outcome("up to date", None, "the pipeline was ended")


class Here:
    """This checkout, and the devices of this machine.

    Args:
        slots: the devices; trainings beyond them wait.
    """

    def __init__(self, slots: Sequence[devices.Slot]) -> None:
        self.places = devices.Slots(slots)
        self._others = threading.BoundedSemaphore(cores())  # stages that do not train, at once

    @property
    def trainings(self) -> int:
        """How many trainings can run at once."""
        return len(self.places.all)

    def bring(
        self,
        wanted: Wanted,
        ended: guard.Ended,
        listener: Listener,
        *,
        pull: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Waits for its device and brings one stage up to date; ``ENDED`` if ``ended`` is set before or meanwhile.

        Args:
            wanted: the stage.
            ended: says that it is to end.
            listener: is told how it goes.
            pull: results of earlier runs may be fetched from the remote.
            environment: variables of the stage, beside those of this process.

        Raises:
            ConfigurationError: it wants more devices than there are.
        """
        taken = None
        with ExitStack() as stack:
            if wanted.devices:
                taken = stack.enter_context(self.places.taken(wanted.devices, ended, listener.waits, wanted.seconds))
            else:
                stack.enter_context(self._others)
            if ended.is_set():
                return ENDED
            listener.begins(taken.name if taken else "")
            before = journal.size()
            process = guard.start(
                [*DVC, "repro", "--single-item", *["--force"] * wanted.force, *["--pull"] * pull, wanted.stage],
                env=guard.environment() | dict(environment or {}) | (taken.environment if taken else {}),
                holding=taken.locks if taken else (),
            )
            with ended.over(process):
                state, last = _followed(process, listener.says)
        if process.returncode == 0:
            return Outcome(state)
        if ended.is_set():
            return ENDED
        own = _own_status(wanted.stage, before, last)
        return Outcome(state, own if state == "ran" else 1, _why(last, own, state))


def dvc(*words: str, ended: guard.Ended) -> None:
    """Runs another command of DVC, to its end unless ``ended`` is set.

    Raises:
        ServiceError: it failed, or was ended; with the last that it said.
    """
    process = guard.start([*DVC, *words], env=guard.environment())
    with ended.over(process):
        last = deque((redacted(line.strip()) for line in process.stdout if line.strip()), maxlen=50)
    if process.returncode:
        raise ServiceError(f"dvc {' '.join(words)}: {_why(list(last), 1, '')}")


def _followed(process: Popen, says: Callable[[str], None]) -> tuple[str, list[str]]:
    """Passes on what a stage prints; returns what became of it, and its last lines."""
    state, last = "up to date", deque(maxlen=50)
    for line in process.stdout:
        line = redacted(line.rstrip("\n"))
        if RAN.match(line):
            state = "ran"
        elif CACHED.match(line):
            state = "cached"
        if line.strip():
            last.append(line)
            says(line)
    return state, list(last)


def _why(last: list[str], own: int | None, state: str) -> str:
    """Returns the line that says what went wrong."""
    errors = [line for line in last if line.startswith("error:")] or [line for line in last if MEMORY.search(line)]
    if errors:
        return errors[-1].removeprefix("error: ")
    if own is None and state == "ran":
        return "its process was killed"
    said = [line for line in last if line.startswith("ERROR:")] or last
    return (said[-1] if said else "it said nothing").removeprefix("ERROR: ")


def _own_status(stage: str, before: int, last: list[str]) -> int | None:
    """Returns the exit status of a failed stage, of which ``dvc`` makes 255; None: it was killed.

    A stage of ours notes it in the journal, here behind the first ``before`` bytes; of others DVC says it.
    """
    if noted := [entry["status"] for entry in journal.entries(before) if entry["stage"] == stage]:
        return noted[-1]
    statuses = [int(found[1]) for line in last if (found := EXITED.search(line))]
    return statuses[-1] if statuses and 0 < statuses[-1] < 128 else None
