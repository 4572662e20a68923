"""Which devices there are, and who has them: one slot per GPU, or the CPU, as one slot or divided into several.

A slot is a file with an OS lock (flock), in one folder for all flows of a machine: several flows share the devices, and
whatever kills the process that holds a lock - the guard of a training - frees it at once, with nothing to clean up.
"""

import bisect
import fcntl
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConfigurationError
from convoy.machine.workers import cores

PAUSE = 0.2  # seconds between two looks at slots that others have


@dataclass(frozen=True)
class Slot:
    """A device, or a share of the CPU, that one training has for itself.

    Attributes:
        name: ``gpu:0``, ``cpu:1``; of a GPU with the number that CUDA and nvidia-smi give it.
        file: name of its lock.
    """

    name: str
    file: str


@dataclass(frozen=True)
class Taken:
    """Slots as long as somebody has them: give ``locks`` to the process that is to hold them."""

    slots: tuple[Slot, ...]
    locks: tuple[int, ...]
    environment: dict[str, str]

    @property
    def name(self) -> str:
        """Returns ``gpu:0``, or ``gpu:0,1`` of several."""
        kind = self.slots[0].name.split(":")[0]
        return f"{kind}:{','.join(slot.name.split(':')[1] for slot in self.slots)}"


def found(slots: int | None = None) -> list[Slot]:
    """Returns the slots of this machine.

    Args:
        slots: at most so many; without a GPU exactly so many, each with its share of the threads. None: every GPU, or
            the CPU as one. (In how many parts TensorFlow divides its sums is the number of threads, so that a model
            trained on half of them is as good, but not the same to the last bit.)

    Raises:
        ConfigurationError: fewer than one.
    """
    if slots is not None and slots < 1:
        raise ConfigurationError(f"slots = {slots}: at least one is needed.")
    gpus = _gpus()
    if gpus:
        return gpus[:slots]
    return [Slot(f"cpu:{number}", f"cpu-{number}.lock") for number in range(slots or 1)]


class Slots:
    """Gives out slots, to the threads of this process and beside other processes.

    Args:
        slots: as ``found`` returns them.
        folder: of the locks; by default the one that all flows of this machine use.
    """

    def __init__(self, slots: Sequence[Slot], folder: Path | None = None) -> None:
        self.all = tuple(slots)
        self._queue: list[tuple[float, int]] = []  # (priority, number) of those that wait, the first of which may try
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._folder = folder or Path(tempfile.gettempdir(), "convoy-slots")
        self._folder.mkdir(exist_ok=True)
        if self._folder.stat().st_uid == os.getuid():
            self._folder.chmod(0o1777)  # like /tmp itself: other users of the machine share its GPUs

    @contextmanager
    def taken(
        self, count: int, ended: threading.Event, waiting: Callable[[], None], seconds: float = 0.0
    ) -> Iterator[Taken | None]:
        """Waits for ``count`` slots and gives them; None if ``ended`` is set before.

        Of those that wait in this process who takes longest goes first: it would otherwise run alone at the end. Nobody
        overtakes it, so that who wants two slots gets them. Of slots of the CPU, which may be divided into any number
        of devices, at most all are given.

        Args:
            count: how many.
            ended: says that nobody needs them any more.
            waiting: called if there are none at once.
            seconds: how long they will probably be needed.

        Raises:
            ConfigurationError: there are not so many.
        """
        if self.all[0].name.startswith("cpu"):
            count = min(count, len(self.all))
        if count > len(self.all):
            names = ", ".join(slot.name for slot in self.all)
            raise ConfigurationError(f"devices: {count} are asked for; there are {len(self.all)}: {names}.")
        locks: list[int] = []
        place = (-seconds, next(self._numbers))
        with self._lock:
            bisect.insort(self._queue, place)
        try:
            slots = self._try(count, locks, place)
            if not slots:
                waiting()
            while not slots and not ended.wait(PAUSE * random.uniform(0.5, 1)):
                slots = self._try(count, locks, place)
            yield Taken(tuple(slots), tuple(locks), self._environment(slots)) if slots else None
        finally:
            with self._lock:
                if place in self._queue:
                    self._queue.remove(place)
            for lock in locks:
                os.close(lock)

    def _try(self, count: int, locks: list[int], place: tuple[float, int]) -> list[Slot]:
        """Takes ``count`` slots, or none, so that two processes that want two each never wait for one another."""
        with self._lock:
            if self._queue[0] != place:
                return []
            slots = self._free(count, locks)
            if slots:
                self._queue.remove(place)
            return slots

    def _free(self, count: int, locks: list[int]) -> list[Slot]:
        slots = []
        for slot in self.all:
            lock = os.open(self._folder / slot.file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            slots.append(slot)
            locks.append(lock)
            if len(slots) == count:
                return slots
        while locks:
            os.close(locks.pop())
        return []

    def _environment(self, slots: Sequence[Slot]) -> dict[str, str]:
        """Returns what tells CUDA which devices to use, or TensorFlow and OpenMP how many threads."""
        if slots and slots[0].name.startswith("gpu"):
            # In the order of nvidia-smi, which is not CUDA's own.
            numbers = ",".join(slot.name.split(":")[1] for slot in slots)
            return {"CUDA_VISIBLE_DEVICES": numbers, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if len(self.all) == 1:
            return {}  # the same as without a flow
        threads = str(max(1, len(slots) * cores() // len(self.all)))
        return dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), threads)


def _gpus() -> list[Slot]:
    """Returns the GPUs that nvidia-smi lists, of which ``CUDA_VISIBLE_DEVICES`` leaves some or none."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible in ("", "-1"):
        return []
    command = [program, "--query-gpu=index,uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        return []  # a driver without a device
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    chosen = visible.split(",") if visible else None
    return [
        Slot(f"gpu:{index}", f"{uuid}.lock") for index, uuid in rows if chosen is None or {index, uuid} & set(chosen)
    ]
