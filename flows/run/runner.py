"""Updates one stage of this checkout: ``dvc repro --single-item`` in a process of its own."""

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
from convoy.machine.room import OUT_OF_MEMORY, cores
from convoy.secrets import redacted
from flows.run import devices

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
LAST_LINES = 50  # of a process that are kept for its error
# Lines of DVC that name the outcome of a stage.
RAN = re.compile(r"Running stage '(.+)':")
EXITED = re.compile(r"exited with (-?\d+)")
CACHED = re.compile(r"Stage '(.+)' is cached - skipping run")


@dataclass(frozen=True)
class StageRequest:
    """A stage to update.

    Attributes:
        stage: its name in DVC.
        devices: number of devices for it alone; 0 if it does not train.
        seconds: its usual time.
        force: run it even if nothing changed.
    """

    stage: str
    devices: int = 0
    seconds: float = 0.0
    force: bool = False


@dataclass(frozen=True)
class Listener:
    """Receives the events of a stage.

    Attributes:
        waits: the stage waits for a device.
        begins: the stage starts, on the device named; "" for none.
        says: the stage printed a line.
    """

    waits: Callable[[], None]
    begins: Callable[[str], None]
    says: Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The end of a stage.

    Attributes:
        state: ``ran``, ``cached`` or ``up to date``; of a failed stage whether it started to run.
        status: its own exit status; 0 for success, None if it was killed.
        reason: the error.
    """

    state: str
    status: int | None = 0
    reason: str = ""


ENDED = Outcome("up to date", None, "the pipeline was ended")


class LocalRunner:
    """Updates stages in this checkout, on the devices of this machine.

    Args:
        slots: the devices; further trainings wait.
    """

    def __init__(self, slots: Sequence[devices.Slot]) -> None:
        self._slots = devices.Slots(slots)
        self._others = threading.BoundedSemaphore(cores())  # stages that do not train, at once

    @property
    def trainings(self) -> int:
        """How many trainings can run at once."""
        return len(self._slots.all)

    def update(
        self,
        request: StageRequest,
        ended: guard.Ended,
        listener: Listener,
        *,
        pull: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Waits for devices and updates one stage; returns ``ENDED`` if ``ended`` is set before or meanwhile.

        Args:
            request: the stage.
            ended: ends the stage.
            listener: receives its events.
            pull: allow DVC to fetch results of earlier runs from the remote.
            environment: variables of the stage, beside those of this process.

        Raises:
            ConfigurationError: the request needs more devices than there are.
        """
        lease = None
        with ExitStack() as stack:
            if request.devices:
                lease = stack.enter_context(self._slots.lease(request.devices, ended, listener.waits, request.seconds))
            else:
                stack.enter_context(self._others)
            if ended.is_set():
                return ENDED
            listener.begins(lease.name if lease else "")
            before = journal.size()
            process = guard.start(
                [*DVC, "repro", "--single-item", *["--force"] * request.force, *["--pull"] * pull, request.stage],
                env=guard.environment() | dict(environment or {}) | (lease.environment if lease else {}),
                holding=lease.locks if lease else (),
            )
            with ended.over(process):
                state, last = _follow(process, listener.says)
        if process.returncode == 0:
            return Outcome(state)
        if ended.is_set():
            return ENDED
        status = _find_status(request.stage, before, last)
        return Outcome(state, status if state == "ran" else 1, _find_error(last, status, state))


def run_dvc(*words: str, ended: guard.Ended) -> None:
    """Runs another command of DVC, to its end unless ``ended`` is set.

    Raises:
        ServiceError: the command failed, or was ended; with its last line.
    """
    process = guard.start([*DVC, *words], env=guard.environment())
    with ended.over(process):
        last = deque((redacted(line.strip()) for line in process.stdout if line.strip()), maxlen=LAST_LINES)
    if process.returncode:
        raise ServiceError(f"dvc {' '.join(words)}: {_find_error(list(last), 1, '')}")


def _follow(process: Popen, says: Callable[[str], None]) -> tuple[str, list[str]]:
    """Passes on the lines of a stage; returns its state at the end, and its last lines."""
    state, last = "up to date", deque(maxlen=LAST_LINES)
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


def find_errors(lines: Sequence[str]) -> list[str]:
    """Returns the lines of a stage that name its error: convoy's own, else those of a library without memory."""
    return [line for line in lines if line.startswith("error:")] or [
        line for line in lines if OUT_OF_MEMORY.search(line)
    ]


def _find_error(last: list[str], status: int | None, state: str) -> str:
    """Returns the line that names the error of a failed command."""
    if errors := find_errors(last):
        return errors[-1].removeprefix("error: ")
    if status is None and state == "ran":
        return "its process was killed"
    said = [line for line in last if line.startswith("ERROR:")] or last
    return (said[-1] if said else "it said nothing").removeprefix("ERROR: ")


def _find_status(stage: str, before: int, last: list[str]) -> int | None:
    """Returns the exit status of a failed stage, for which ``dvc`` itself ends with 255; None: it was killed.

    Convoy's stages note it in the journal, behind the first ``before`` bytes; of others DVC prints it.
    """
    if noted := [entry["status"] for entry in journal.entries(before) if entry["stage"] == stage]:
        return noted[-1]
    statuses = [int(found[1]) for line in last if (found := EXITED.search(line))]
    return statuses[-1] if statuses and 0 < statuses[-1] < 128 else None
