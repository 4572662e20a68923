"""The same flow on many machines: the workers of a Dask cluster bring the stages up to date, each in its own clone.

The coordinator is the clone in which ``pipeline`` runs. It sends a worker the name of a stage, params.yaml and what
dvc.lock says of the stage's inputs; the worker pulls them from DVC's remote, runs the stage as on one machine
(``repro.Here``), pushes its outputs and returns its entry of dvc.lock, which the coordinator writes into its own before
it pulls the outputs too. What a remote cannot hold - ``Node.travels`` - the coordinator runs itself.

The tasks of Prefect stay in the coordinator, and only their work travels, with Dask's own client. With prefect-dask's
task runner they would run in the workers: each would have to reach Prefect's server, which has no login and by default
listens on loopback only, and could begin before the coordinator has written the entries that it relies on.
"""

import asyncio
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import dask.config
from distributed import Client, Status, Worker, get_worker
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from convoy import CODE, journal
from convoy.checksums import sha256
from convoy.errors import ConfigurationError, ServiceError, StageError
from convoy.machine.guard import Ended
from convoy.machine.workers import cores
from convoy.repo import graph, lockfile
from convoy.repo.graph import Node
from flows.run import devices, runner
from flows.run.exclusive import alone
from flows.run.runner import ENDED, Here, Listener, Outcome, Wanted

TRACKING = "MLFLOW_TRACKING_URI"
STAGES, GPU, CPU = "convoy-stages", "GPU", "CPU"  # what a worker has, as Dask's resources
LOOK_SECONDS = 0.5  # between two looks whether a stage is still wanted
AGAIN_SECONDS = 5.0  # between two tries to reach the scheduler
WRITTEN = Path("data/.worker.json")  # what a worker wrote into the settings of its clone


@dataclass(frozen=True)
class Order:
    """What a worker needs to bring a stage up to date.

    Attributes:
        wanted: the stage.
        inputs: names of stages, and .dvc files, whose outputs it reads.
        settings: path -> text of params.yaml and of the .dvc files.
        entries: what dvc.lock says of the stage and its inputs.
        code: path -> SHA-256, as ``checksums`` gives it.
        environment: variables of the stage.
        topic: where the worker tells how it goes.
    """

    wanted: Wanted
    inputs: tuple[str, ...]
    settings: dict[str, str]
    entries: dict[str, dict]
    code: dict[str, str]
    environment: dict[str, str]
    topic: str


@dataclass(frozen=True)
class Delivery:
    """What comes back: how it went, the entry of dvc.lock, and the worker's line of the journal, if there is one."""

    outcome: Outcome
    entries: dict[str, dict]
    notes: list[dict]


class Cluster:
    """The workers of a Dask scheduler, as ``repro.Here`` is one checkout: they bring stages up to date.

    Args:
        address: of the scheduler, e.g. ``tcp://host:8786``; ``tls://`` takes its certificates from Dask's settings.
        nodes: the stages.
    """

    def __init__(self, address: str, nodes: Mapping[str, Node]) -> None:
        self._address, self._nodes = address, nodes
        self._here = Here(devices.found())
        self._dvc = threading.RLock()  # its API is not made for threads
        self._sent: set[str] = set()  # stages and .dvc files whose outputs the remote has
        self._client: Client | None = None
        self._connecting = threading.Lock()

    def __enter__(self) -> "Cluster":
        """Connects.

        Raises:
            ConfigurationError: there is no remote or no common MLflow; or a worker's code is another.
            ServiceError: no scheduler answers, or it has no worker.
        """
        _need_remote()
        if not os.environ.get(TRACKING):
            raise ConfigurationError(
                f"{TRACKING} is not set: the runs of each worker would be in a database of its own. Start "
                "`mlflow server` where all workers reach it, and set the variable here to its address."
            )
        try:
            self._check()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def trainings(self) -> int:
        """How many trainings can run at once."""
        return round(sum(worker.get(self._device, 0) for worker in self._workers().values())) or 1

    def bring(self, wanted: Wanted, ended: Ended, listener: Listener) -> Outcome:
        """Brings one stage up to date, here or on a worker; ``ENDED`` if ``ended`` is set before or meanwhile.

        Raises:
            ConfigurationError: no worker has so many devices, or the one that it came to has another code.
            ServiceError: the remote or the scheduler fails.
        """
        node = self._nodes[wanted.stage]
        if not node.travels:
            return self._here.bring(wanted, ended, listener)
        if not wanted.force:
            with self._dvc:
                changed = graph.changes([wanted.stage])[wanted.stage]
            if changed and all(change.endswith(" deleted") for change in changed) and graph.entries([wanted.stage]):
                listener.begins("")
                with suppress(ServiceError), self._dvc:  # the remote does not have it: so it is made again
                    runner.dvc("pull", "--force", wanted.stage, ended=ended)
                    graph.ignore([wanted.stage])
                    if not graph.changes([wanted.stage])[wanted.stage]:
                        return Outcome("cached")
            if not changed:
                return Outcome("up to date")
        listener.waits()
        inputs = (*node.needs, *node.data)
        with self._dvc:
            if absent := [name for name in inputs if name not in self._sent]:
                runner.dvc("push", "--run-cache", *absent, ended=ended)
                self._sent.update(absent)
            entries = graph.entries([wanted.stage, *node.needs])
            settings = {path: Path(path).read_text() for path in (*graph.parameters(), *node.data)}
        environment = {TRACKING: os.environ[TRACKING]}
        delivery = self._ordered(
            Order(wanted, inputs, settings, entries, self._code, environment, f"convoy-{uuid4()}"), ended, listener
        )
        for note in delivery.notes:
            journal.add(note)
        if delivery.outcome.status == 0:
            with self._dvc:
                graph.merge(delivery.entries)
                self._sent.add(wanted.stage)
                runner.dvc("pull", "--force", wanted.stage, ended=ended)
                graph.ignore([wanted.stage])
        return delivery.outcome

    def _ordered(self, order: Order, ended: Ended, listener: Listener) -> Delivery:
        """Has a worker do it. If that dies, Dask gives it to another one."""
        wanted, news = order.wanted, queue.SimpleQueue()
        resource, count = (self._device, wanted.devices) if wanted.devices else (STAGES, 1)
        most = max((worker.get(resource, 0) for worker in self._workers().values()), default=0)
        if resource == CPU:  # as ``Slots.taken``
            count = min(count, max(1, most))
        if count > max(1, most):
            raise ConfigurationError(f"devices: {count} are asked for; no worker has more than {most:.0f}.")
        client = self._connected()
        client.subscribe_topic(order.topic, lambda event: news.put(event[1]))
        # To the scheduler it is bytes: it need not be in a clone, as it would to read a function of ours.
        future = client.submit(
            pickle.loads,
            pickle.dumps(_Call(order)),
            key=f"{wanted.stage}-{uuid4()}",
            resources={resource: count},
            priority=round(wanted.seconds),
            pure=False,
        )
        future.add_done_callback(lambda _: news.put((None, "")))
        what = None
        try:
            while not ended.is_set():
                with suppress(queue.Empty):
                    what, text = news.get(timeout=LOOK_SECONDS)
                    match what:
                        case "waits":
                            listener.waits()
                        case "begins":
                            listener.begins(text)
                        case "says":
                            listener.says(text)
                if what is None and future.done():
                    return future.result()
                if client.status != "running":
                    raise ServiceError(f"the scheduler {self._address} is gone.")
            return Delivery(ENDED, {}, [])
        except (KilledWorker, FutureCancelledError) as error:  # after some workers; or the scheduler lost its memory
            return Delivery(Outcome("ran", None, str(error)), {}, [])
        finally:
            future.release()  # where it still works, the worker sees it and ends it
            with suppress(ClosedClientError, CommClosedError):
                client.unsubscribe_topic(order.topic)

    def _connected(self) -> Client:
        """Returns the connection to the scheduler; a new one where that is gone."""
        with self._connecting:
            if self._client is None or self._client.status != "running":
                if self._client is not None:
                    self._client.close()
                try:
                    self._client = Client(self._address, set_as_default=False)  # waits as Dask's own setting says
                except OSError as error:
                    raise ServiceError(f"no Dask scheduler answers at {self._address}: {error}") from error
            return self._client

    def _workers(self) -> dict[str, dict[str, float]]:
        """Returns the address and the resources of the workers that are convoy's."""
        known = self._connected().scheduler_info(n_workers=-1)["workers"]
        return {at: facts["resources"] for at, facts in known.items() if STAGES in facts["resources"]}

    @cached_property
    def _device(self) -> str:
        """What trainings run on: the CPU where no worker has a GPU."""
        return GPU if any(GPU in worker for worker in self._workers().values()) else CPU

    @cached_property
    def _code(self) -> dict[str, str]:
        return checksums()

    def _check(self) -> None:
        workers = self._workers()
        if not workers:
            raise ServiceError(
                f"the scheduler {self._address} has no worker. Start one in another clone: "
                f"`convoy worker {self._address}`."
            )
        problems = self._connected().run(_problem, self._code, workers=list(workers))
        if wrong := [problem for problem in problems.values() if problem]:
            raise ConfigurationError("; ".join(wrong))


def checksums() -> dict[str, str]:
    """Returns path -> SHA-256 of the code, of stages and flows, that has to be the same in all clones."""
    own = {str(path.relative_to(CODE)): path for path in (CODE / "flows").rglob("*.py")}
    return {name: sha256(path) for name, path in (own | {path: Path(path) for path in graph.code()}).items()}


class Clone:
    """A worker's checkout, in which it runs stages.

    Args:
        slots: its devices.
    """

    def __init__(self, slots: list[devices.Slot]) -> None:
        self.here, self.stopped = Here(slots), threading.Event()
        self._dvc = threading.RLock()
        self._settled = threading.Condition()
        self._users, self._settings = 0, {}

    @cached_property
    def name(self) -> str:
        """Where it is."""
        return f"{socket.gethostname()}:{Path.cwd()}"

    @cached_property
    def code(self) -> dict[str, str]:
        """As ``checksums`` gives it, when the worker started: later changes would not be in what it has imported."""
        return checksums()

    def problem(self, code: Mapping[str, str]) -> str | None:
        """Says why this clone cannot work for a coordinator with that code; None if it can."""
        other = sorted(path for path in code.keys() | self.code.keys() if code.get(path) != self.code.get(path))
        if not other:
            return None
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return (
            f"the worker {self.name} has another code: {', '.join(other[:3])}{more}. Bring both clones to the same "
            "commit, and start the worker again."
        )

    def bring(self, order: Order, ended: Ended, listener: Listener) -> Delivery:
        """Brings a stage up to date as if its inputs had been made here; pushes what it made."""
        wanted = order.wanted
        if problem := self.problem(order.code):
            raise ConfigurationError(problem)
        with self._having(order.settings, ended):
            if ended.is_set():
                return Delivery(ENDED, {}, [])
            with self._dvc:
                graph.merge(order.entries)
                runner.dvc("pull", "--force", "--run-cache", *order.inputs, ended=ended)
                graph.ignore([name for name in order.inputs if not name.endswith(".dvc")])
            before = journal.size()
            outcome = self.here.bring(wanted, ended, listener, pull=True, environment=order.environment)
            entries = {}
            if outcome.status == 0:
                with self._dvc:
                    runner.dvc("push", "--run-cache", wanted.stage, ended=ended)
                    entries = graph.entries([wanted.stage])
                # What was made in this clone before is new to the coordinator.
                state = "cached" if outcome.state == "up to date" else outcome.state
                outcome = Outcome(state)
        notes = [note | {"on": self.name} for note in journal.entries(before) if note["stage"] == wanted.stage]
        return Delivery(outcome, entries, notes)

    @contextmanager
    def _having(self, settings: dict[str, str], ended: Ended) -> Iterator[None]:
        """Keeps the coordinator's params.yaml in place; that of another one waits for it."""
        with self._settled:
            while self._users and settings != self._settings and not ended.is_set():
                self._settled.wait(LOOK_SECONDS)
            if not self._users:
                for path, text in settings.items():
                    _write(Path(path), text)
                self._settings = settings
            self._users += 1
        try:
            yield
        finally:
            with self._settled:
                self._users -= 1
                self._settled.notify_all()

    def stop(self) -> None:
        """Ends what it does; returns when that is gone."""
        self.stopped.set()
        with self._settled:
            self._settled.wait_for(lambda: not self._users)
        self.stopped.clear()


def serve(address: str, slots: int | None) -> None:
    """Works in this clone for whoever has a cluster do its pipeline, until it is ended.

    Args:
        address: of the scheduler; it may start later, or again.
        slots: as of ``pipeline``.

    Raises:
        BusyError: a pipeline or another worker is at work in this clone.
        ConfigurationError: there is no remote; or ``slots`` is not a number of slots.
    """
    global _clone
    # A stage's own work over many examples stays in its clone.
    os.environ["DASK_SCHEDULER_ADDRESS"] = ""
    _need_remote()
    places = devices.found(slots)
    with alone("worker", lambda _: None):
        lockfile.mend()
        _clone = Clone(places)
        _ = _clone.code
        with dask.config.set({"scheduler-address": None}):
            asyncio.run(_serve(address, places))


async def _serve(address: str, places: list[devices.Slot]) -> None:
    kind = GPU if places[0].name.startswith("gpu") else CPU
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    end, last = asyncio.create_task(stopped.wait()), ""

    async def started() -> Worker:
        return await Worker(
            address,
            name=_clone.name,
            nthreads=len(places) + cores(),  # what runs at once is up to the resources
            resources={kind: len(places), STAGES: cores()},
            local_directory=tempfile.gettempdir(),
            dashboard=False,
        )

    while not stopped.is_set():
        start = asyncio.create_task(started())  # Dask itself waits for a scheduler that does not answer
        await asyncio.wait([start, end], return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            return
        if error := start.exception():  # e.g. the scheduler still has a dead worker of this name
            problem = f"the scheduler {address} does not take {_clone.name} yet: {error.__cause__ or error}"
            if problem != last:
                print(problem, flush=True)
            last = problem
            await asyncio.wait([end], timeout=AGAIN_SECONDS)
            continue
        worker, last = start.result(), ""
        print(f"works for {address} in {_clone.name}, on {', '.join(place.name for place in places)}", flush=True)
        gone = asyncio.create_task(worker.finished())
        await asyncio.wait([gone, end], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(_clone.stop)
        await worker.close(executor_wait=False)
        if not stopped.is_set():
            print(f"the scheduler {address} is gone; waiting for it", flush=True)


def _need_remote() -> None:
    if graph.remote() is None:
        raise ConfigurationError(
            "a cluster needs a remote that all its clones reach, to carry the data. "
            "Add one with `dvc remote add --default NAME URL`."
        )


_clone: Clone | None = None  # of this process, if it is a worker


def _problem(code: dict[str, str]) -> str | None:
    """``Clone.problem``, on a worker."""
    return _clone.problem(code)


@dataclass(frozen=True)
class _Call:
    """What, when it is unpickled, has been done: ``_work(order)``."""

    order: Order

    def __reduce__(self) -> tuple:
        return _work, (self.order,)


def _work(order: Order) -> Delivery:
    """``Clone.bring``, on a worker."""
    worker = get_worker()
    key, over, ended = worker.get_current_task(), threading.Event(), Ended()

    def watch() -> None:
        """Ends it when nobody wants it any more: the coordinator or the scheduler is gone, or does not want it."""
        while not over.wait(LOOK_SECONDS):
            task = worker.state.tasks.get(key)
            working = worker.status in (Status.running, Status.paused) and task is not None
            if not working or task.state not in ("executing", "long-running") or _clone.stopped.is_set():
                ended.set()

    tell = partial(worker.log_event, order.topic)
    host = socket.gethostname()
    listener = Listener(
        waits=lambda: tell(["waits", ""]),
        begins=lambda device: tell(["begins", f"{host} {device}".strip()]),
        says=lambda line: tell(["says", line]),
    )
    threading.Thread(target=watch, daemon=True).start()
    try:
        return _clone.bring(order, ended, listener)
    except StageError as error:
        return Delivery(Outcome("up to date", error.status, f"{_clone.name}: {error}"), {}, [])
    finally:
        over.set()


def _write(path: Path, text: str) -> None:
    """Writes a setting of the coordinator.

    Raises:
        ConfigurationError: here it has changes of its own, which would be lost.
    """
    written = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    if path.exists():
        if path.read_text() == text:
            return
        if written.get(str(path)) != sha256(path):
            done = subprocess.run(["git", "status", "--porcelain", "--", path], capture_output=True, check=False)
            if done.returncode or done.stdout.strip():
                raise ConfigurationError(f"{path} has changes of its own, which would be lost: commit or restore it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    WRITTEN.write_text(json.dumps(written | {str(path): sha256(path)}))
