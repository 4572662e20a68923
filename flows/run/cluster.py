"""The same flow on many machines: the workers of a Dask cluster update the stages, each in its own clone.

The coordinator is the clone in which ``pipeline`` runs. It sends a worker the name of a stage, params.yaml and the
entries of dvc.lock for the stage's inputs. The worker pulls them from DVC's remote, runs the stage as on one machine
(``LocalRunner``), pushes its outputs and returns its entry of dvc.lock. The coordinator writes the entry into its own
dvc.lock and pulls the outputs too. It runs stages that a remote cannot hold (``Node.travels``) itself.

The tasks of Prefect stay in the coordinator, and only their work travels, with Dask's own client. With prefect-dask's
task runner they would run in the workers: each would have to reach Prefect's server, which has no login and by default
listens on loopback only, and could begin before the coordinator has written the entries that it relies on.
"""

import os
import pickle
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from distributed import Client, Future
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from convoy import journal
from convoy.errors import ConfigurationError, ServiceError
from convoy.machine.guard import Ended
from convoy.repo import graph
from convoy.repo.graph import Node
from flows.run import devices
from flows.run.orders import CPU, GPU, POLL_SECONDS, STAGES, Delivery, Order, checksum_code, require_remote
from flows.run.runner import ENDED, Listener, LocalRunner, Outcome, StageRequest, run_dvc
from flows.run.worker import Call, find_problem

TRACKING = "MLFLOW_TRACKING_URI"


class Cluster:
    """Updates stages on the workers of a Dask scheduler, as ``LocalRunner`` does in one checkout.

    Args:
        address: of the scheduler, e.g. ``tcp://host:8786``; ``tls://`` takes its certificates from Dask's settings.
        nodes: the stages.
    """

    def __init__(self, address: str, nodes: Mapping[str, Node]) -> None:
        self._address, self._nodes = address, nodes
        self._runner = LocalRunner(devices.find())
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
        require_remote()
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
        return round(sum(worker.get(self._device, 0) for worker in self._find_workers().values())) or 1

    def update(self, request: StageRequest, ended: Ended, listener: Listener) -> Outcome:
        """Updates one stage, here or on a worker; returns ``ENDED`` if ``ended`` is set before or meanwhile.

        Raises:
            ConfigurationError: no worker has so many devices, or its code differs.
            ServiceError: the remote or the scheduler fails.
        """
        node = self._nodes[request.stage]
        if not node.travels:
            return self._runner.update(request, ended, listener)
        if not request.force and (found := self._find_result(request.stage, ended, listener)):
            return found
        listener.waits()
        delivery = self._send(self._prepare(request, node, ended), ended, listener)
        for note in delivery.notes:
            journal.add(note)
        if delivery.outcome.status == 0:
            with self._dvc:
                graph.merge(delivery.entries)
                self._sent.add(request.stage)
                run_dvc("pull", "--force", request.stage, ended=ended)
                graph.ignore([request.stage])
        return delivery.outcome

    def _find_result(self, stage: str, ended: Ended, listener: Listener) -> Outcome | None:
        """Returns the outcome of a stage that need not run: it is up to date, or the remote has its outputs."""
        with self._dvc:
            changed = graph.changes([stage])[stage]
        if not changed:
            return Outcome("up to date")
        if all(change.endswith(" deleted") for change in changed) and graph.entries([stage]):
            listener.begins("")
            with suppress(ServiceError), self._dvc:  # the remote does not have them: the stage runs again
                run_dvc("pull", "--force", stage, ended=ended)
                graph.ignore([stage])
                if not graph.changes([stage])[stage]:
                    return Outcome("cached")
        return None

    def _prepare(self, request: StageRequest, node: Node, ended: Ended) -> Order:
        """Returns the order of a stage whose inputs the remote has."""
        inputs = (*node.needs, *node.data)
        with self._dvc:
            if absent := [name for name in inputs if name not in self._sent]:
                run_dvc("push", "--run-cache", *absent, ended=ended)
                self._sent.update(absent)
            entries = graph.entries([request.stage, *node.needs])
            settings = {path: Path(path).read_text() for path in (*graph.parameters(), *node.data)}
        environment = {TRACKING: os.environ[TRACKING]}
        return Order(request, inputs, settings, entries, self._code, environment, f"convoy-{uuid4()}")

    def _send(self, order: Order, ended: Ended, listener: Listener) -> Delivery:
        """Sends an order and waits for its delivery. If the worker dies, Dask gives the order to another one."""
        request, news = order.request, queue.SimpleQueue()
        resources = self._require(request.devices)
        client = self._connect()
        client.subscribe_topic(order.topic, lambda event: news.put(event[1]))
        # To the scheduler it is bytes: it need not be in a clone, as it would to read a function of ours.
        future = client.submit(
            pickle.loads,
            pickle.dumps(Call(order)),
            key=f"{request.stage}-{uuid4()}",
            resources=resources,
            priority=round(request.seconds),
            pure=False,
        )
        future.add_done_callback(lambda _: news.put((None, "")))
        try:
            return self._await(client, future, news, ended, listener)
        except (KilledWorker, FutureCancelledError) as error:  # after some workers; or the scheduler lost its memory
            return Delivery(Outcome("ran", None, str(error)), {}, [])
        finally:
            future.release()  # a worker that still works at it sees that, and ends it
            with suppress(ClosedClientError, CommClosedError):
                client.unsubscribe_topic(order.topic)

    def _require(self, count: int) -> dict[str, int]:
        """Returns Dask's resources for a stage on ``count`` devices.

        Raises:
            ConfigurationError: no worker has so many.
        """
        resource, count = (self._device, count) if count else (STAGES, 1)
        most = max((worker.get(resource, 0) for worker in self._find_workers().values()), default=0)
        if resource == CPU:  # as ``Slots.lease``
            count = min(count, max(1, most))
        if count > max(1, most):
            raise ConfigurationError(f"devices: {count} are asked for; no worker has more than {most:.0f}.")
        return {resource: count}

    def _await(
        self, client: Client, future: Future, news: queue.SimpleQueue, ended: Ended, listener: Listener
    ) -> Delivery:
        """Passes on the worker's events until the delivery arrives, or ``ended`` is set."""
        event = None
        while not ended.is_set():
            with suppress(queue.Empty):
                event, text = news.get(timeout=POLL_SECONDS)
                match event:
                    case "waits":
                        listener.waits()
                    case "begins":
                        listener.begins(text)
                    case "says":
                        listener.says(text)
            if event is None and future.done():
                return future.result()
            if client.status != "running":
                raise ServiceError(f"the scheduler {self._address} is gone.")
        return Delivery(ENDED, {}, [])

    def _connect(self) -> Client:
        """Returns the connection to the scheduler; a new one if that is gone."""
        with self._connecting:
            if self._client is None or self._client.status != "running":
                if self._client is not None:
                    self._client.close()
                try:
                    self._client = Client(self._address, set_as_default=False)  # waits as Dask's own setting says
                except OSError as error:
                    raise ServiceError(f"no Dask scheduler answers at {self._address}: {error}") from error
            return self._client

    def _find_workers(self) -> dict[str, dict[str, float]]:
        """Returns address -> resources of the workers that are convoy's."""
        known = self._connect().scheduler_info(n_workers=-1)["workers"]
        return {at: facts["resources"] for at, facts in known.items() if STAGES in facts["resources"]}

    @cached_property
    def _device(self) -> str:
        """What trainings run on: the CPU if no worker has a GPU."""
        return GPU if any(GPU in worker for worker in self._find_workers().values()) else CPU

    @cached_property
    def _code(self) -> dict[str, str]:
        return checksum_code()

    def _check(self) -> None:
        workers = self._find_workers()
        if not workers:
            raise ServiceError(
                f"the scheduler {self._address} has no worker. Start one in another clone: "
                f"`convoy worker {self._address}`."
            )
        problems = self._connect().run(find_problem, self._code, workers=list(workers))
        if wrong := [problem for problem in problems.values() if problem]:
            raise ConfigurationError("; ".join(wrong))
