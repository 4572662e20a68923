"""A worker's checkout, in which it updates stages."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from convoy import journal
from convoy.checksums import sha256
from convoy.errors import ConfigurationError
from convoy.machine.guard import Ended
from convoy.repo import graph
from flows.run import devices
from flows.run.orders import POLL_SECONDS, Delivery, Order, checksum_code
from flows.run.runner import ENDED, Listener, LocalRunner, Outcome, run_dvc

RECORD = Path("data/.worker.json")  # path -> SHA-256 of the settings that a worker wrote into its clone


class Clone:
    """A worker's checkout, in which it runs stages.

    Args:
        slots: its devices.
    """

    def __init__(self, slots: list[devices.Slot]) -> None:
        self._runner, self.stopped = LocalRunner(slots), threading.Event()
        self._dvc = threading.RLock()  # its API is not made for threads
        self._changed = threading.Condition()  # of users and settings
        self._users, self._settings = 0, {}

    @cached_property
    def name(self) -> str:
        """Its host and folder."""
        return f"{socket.gethostname()}:{Path.cwd()}"

    @cached_property
    def code(self) -> dict[str, str]:
        """Checksums of the code at the worker's start: what it has imported does not see later changes."""
        return checksum_code()

    def find_problem(self, code: Mapping[str, str]) -> str | None:
        """Returns why this clone cannot work for a coordinator with that code; None if it can."""
        other = sorted(path for path in code.keys() | self.code.keys() if code.get(path) != self.code.get(path))
        if not other:
            return None
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return (
            f"the worker {self.name} has another code: {', '.join(other[:3])}{more}. Bring both clones to the same "
            "commit, and start the worker again."
        )

    def update(self, order: Order, ended: Ended, listener: Listener) -> Delivery:
        """Updates a stage as if its inputs had been made here; pushes its outputs.

        Raises:
            ConfigurationError: the code differs, or settings have changes of their own.
            ServiceError: the remote fails.
        """
        stage = order.request.stage
        if problem := self.find_problem(order.code):
            raise ConfigurationError(problem)
        with self._hold(order.settings, ended):
            if ended.is_set():
                return Delivery(ENDED, {}, [])
            with self._dvc:
                graph.merge(order.entries)
                run_dvc("pull", "--force", "--run-cache", *order.inputs, ended=ended)
                graph.ignore([name for name in order.inputs if not name.endswith(".dvc")])
            before = journal.size()
            outcome = self._runner.update(order.request, ended, listener, pull=True, environment=order.environment)
            entries = {}
            if outcome.status == 0:
                with self._dvc:
                    run_dvc("push", "--run-cache", stage, ended=ended)
                    entries = graph.entries([stage])
                # A result that this clone made before is new to the coordinator.
                outcome = Outcome("cached" if outcome.state == "up to date" else outcome.state)
        notes = [note | {"on": self.name} for note in journal.entries(before) if note["stage"] == stage]
        return Delivery(outcome, entries, notes)

    @contextmanager
    def _hold(self, settings: dict[str, str], ended: Ended) -> Iterator[None]:
        """Keeps the coordinator's settings in place; those of another coordinator wait for them."""
        with self._changed:
            while self._users and settings != self._settings and not ended.is_set():
                self._changed.wait(POLL_SECONDS)
            if not self._users:
                for path, text in settings.items():
                    _write_setting(Path(path), text)
                self._settings = settings
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Ends its stages; returns when they are gone."""
        self.stopped.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._users)
        self.stopped.clear()


def _write_setting(path: Path, text: str) -> None:
    """Writes a setting of the coordinator.

    Raises:
        ConfigurationError: the file has changes of its own, which would be lost.
    """
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if path.exists():
        if path.read_text() == text:
            return
        if record.get(str(path)) != sha256(path):
            done = subprocess.run(["git", "status", "--porcelain", "--", path], capture_output=True, check=False)
            if done.returncode or done.stdout.strip():
                raise ConfigurationError(f"{path} has changes of its own, which would be lost: commit or restore it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    RECORD.write_text(json.dumps(record | {str(path): sha256(path)}))
