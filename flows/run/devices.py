"""Finds the devices of this machine and leases them: one slot per GPU, or the CPU, as one slot or several.

A slot is a file with an OS lock (flock), in one folder for all flows of a machine: several flows share the devices, and
whatever kills the process that holds a lock - the guard of a training - frees it at once, with nothing to clean up.
"""

import bisect
import fcntl
import itertools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convoy.errors import ConfigurationError
from convoy.machine import gpus
from convoy.machine.room import cores

POLL_SECONDS = 0.2  # between two tries to get slots that others have


@dataclass(frozen=True)
class Slot:
    """A device, or a share of the CPU, that one training has for itself.

    Attributes:
        name: ``gpu:0``, ``cpu:1``; of a GPU with its address for CUDA, see ``convoy/machine/gpus.py``.
        file: name of its lock.
    """

    name: str
    file: str


@dataclass(frozen=True)
class Lease:
    """Slots for one training; its process has to inherit ``locks``."""

    slots: tuple[Slot, ...]
    locks: tuple[int, ...]
    environment: dict[str, str]

    @property
    def name(self) -> str:
        """Returns ``gpu:0``, or ``gpu:0,1`` of several."""
        kind = self.slots[0].name.split(":")[0]
        return f"{kind}:{','.join(slot.name.split(':')[1] for slot in self.slots)}"


def find(slots: int | None = None) -> list[Slot]:
    """Returns the slots of this machine.

    Args:
        slots: their largest number; without a GPU their number, each with its share of the threads. None: every GPU,
            or the CPU as one. (TensorFlow divides its sums by the number of threads: a model trained on half of them is
            as good, but not the same to the last bit.)

    Raises:
        ConfigurationError: fewer than one.
    """
    if slots is not None and slots < 1:
        raise ConfigurationError(f"slots = {slots}: at least one is needed.")
    if found := _find_gpus():
        return found[:slots]
    return [Slot(f"cpu:{number}", f"cpu-{number}.lock") for number in range(slots or 1)]


class Slots:
    """Leases slots to the threads of this process, beside other processes.

    Args:
        slots: as ``find`` returns them.
        folder: of the locks; by default the one of all flows of this machine.
    """

    def __init__(self, slots: Sequence[Slot], folder: Path | None = None) -> None:
        self.all = tuple(slots)
        self._queue: list[tuple[float, int]] = []  # (priority, number) of threads that wait; the first may try
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._folder = folder or Path(tempfile.gettempdir(), "convoy-slots")
        self._folder.mkdir(exist_ok=True)
        if self._folder.stat().st_uid == os.getuid():
            self._folder.chmod(0o1777)  # like /tmp itself: other users of the machine share its GPUs

    @contextmanager
    def lease(
        self, count: int, ended: threading.Event, on_wait: Callable[[], None], seconds: float = 0.0
    ) -> Iterator[Lease | None]:
        """Waits for ``count`` slots and leases them; gives None if ``ended`` is set before.

        Within this process the longest training goes first: it would otherwise run alone at the end. Nobody overtakes
        it, so a training on two slots gets them. The CPU may be divided into any number of devices: there ``count`` is
        at most the number of slots.

        Args:
            count: number of slots.
            ended: ends the wait.
            on_wait: called if there are none at once.
            seconds: the usual time of the training.

        Raises:
            ConfigurationError: ``count`` is more than there are.
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
                on_wait()
            while not slots and not ended.wait(POLL_SECONDS * random.uniform(0.5, 1)):
                slots = self._try(count, locks, place)
            yield Lease(tuple(slots), tuple(locks), self._environment(slots)) if slots else None
        finally:
            with self._lock:
                if place in self._queue:
                    self._queue.remove(place)
            for lock in locks:
                os.close(lock)

    def _try(self, count: int, locks: list[int], place: tuple[float, int]) -> list[Slot]:
        """Locks ``count`` slots, or none, so that two processes that need two each never wait for one another."""
        with self._lock:
            if self._queue[0] != place:
                return []
            slots = self._lock_slots(count, locks)
            if slots:
                self._queue.remove(place)
            return slots

    def _lock_slots(self, count: int, locks: list[int]) -> list[Slot]:
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
        """Returns the variables that choose devices for CUDA, or numbers of threads for TensorFlow and OpenMP."""
        if slots and slots[0].name.startswith("gpu"):
            # Numbers are in the order of the bus, which is not CUDA's own.
            addresses = ",".join(slot.name.split(":")[1] for slot in slots)
            return {"CUDA_VISIBLE_DEVICES": addresses, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if len(self.all) == 1:
            return {}  # as without a flow
        threads = str(max(1, len(slots) * cores() // len(self.all)))
        return dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), threads)


def _find_gpus() -> list[Slot]:
    return [Slot(f"gpu:{gpu.address}", f"{gpu.uuid}.lock") for gpu in gpus.list_visible()]
