"""The graph of dvc.yaml as a Prefect flow: a task per stage, in parallel, each with a device of its own if it trains.

``dvc --wait-for-lock repro --single-item`` updates each stage in a process of its own. So dvc.lock is the one that
``dvc repro`` writes, and stages that are up to date do not run.
"""

import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Protocol
from uuid import UUID

from prefect import flow, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import get_run_context
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Crashed, State
from prefect.task_runners import ThreadPoolTaskRunner

from convoy import params
from convoy.errors import BusyError, ConfigurationError, ServiceError, StageError
from convoy.machine import guard
from convoy.machine.room import OUT_OF_MEMORY
from convoy.repo import graph
from convoy.repo.graph import Node
from convoy.tracking import runs
from flows.run import devices
from flows.run.exclusive import claim
from flows.run.runner import Listener, LocalRunner, Outcome, StageRequest
from flows.show import live
from flows.show.live import Board
from stages import check

RETRY_SECONDS = [10.0, 60.0, 300.0]  # before each new try
POLL_SECONDS = 2.0  # between two looks whether somebody cancelled the run
THREADS = 1000  # every stage waits in one
# Failures that may pass: busy (5), an outside service (6), and killed, which leaves no status.
PASSING = (BusyError.status, ServiceError.status, None)


class StageFailedError(StageError):
    """A stage that ended with another status than 0."""

    def __init__(self, name: str, status: int | None, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.own = name, status
        self.status = 1 if status is None else status
        self.passing = status in PASSING or OUT_OF_MEMORY.search(reason) is not None


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=THREADS), persist_result=False)
def pipeline(
    targets: list[str] | None = None, slots: int | None = None, force: bool = False, cluster: str | None = None
) -> State:
    """Updates stages, as many at once as can be.

    A stage that fails does not stop the others; stages that need it do not run. A failure that may pass - killed, out
    of memory, another at it, a service down - is tried again.

    Args:
        targets: stages, or kinds of stages (``train``), and all that they need; by default everything.
        slots: trainings at once; by default one per GPU, without one a single one (``devices.find``).
        force: run them even if nothing changed.
        cluster: address of a Dask scheduler whose workers do it, each with the slots that it was started with.

    Returns:
        Completed, or Cancelled if somebody cancelled it in Prefect.

    Raises:
        StageError: of the first stage in order that failed, with that stage's exit status.
        BusyError: another pipeline runs in this checkout.
        ConfigurationError: ``slots`` beside ``cluster``; or the cluster cannot be used as it is.
    """
    check.check()
    if cluster and slots is not None:
        raise ConfigurationError(f"slots = {slots} beside a cluster: each of its workers is started with its own.")
    nodes = graph.read(targets or ())
    train = params.load()["train"]
    devices_of = {
        name: train.get(node.entry, {}).get("devices", 1) if node.group == "train" else 0
        for name, node in nodes.items()
    }
    if cluster:
        from flows.run.cluster import Cluster  # half a second that only a cluster is worth
    run_id, logger = get_run_context().flow_run.id, get_run_logger()
    with (
        claim("pipeline", partial(_mark_crashed, logger=logger), flow_run=str(run_id)),
        Cluster(cluster, nodes) if cluster else nullcontext(LocalRunner(devices.find(slots))) as runner,
        Board(nodes, runner.trainings) as board,
    ):
        runs.end_abandoned()
        work = _Work(runner, board, devices_of, force)
        cancelled = work.run(nodes, run_id)
        board.finish()
    if cancelled:
        return Cancelled(message="cancelled in Prefect")
    states = {name: row.state for name, row in board.rows.items()}
    for name, state in states.items():
        logger.info("%s: %s", name, state)
    if work.failures:
        raise next(work.failures[name] for name in nodes if name in work.failures)
    if not_run := [name for name, state in states.items() if state not in live.DONE]:
        raise StageError(f"not run: {', '.join(not_run)}")
    return Completed(message=f"{sum(state == 'ran' for state in states.values())} of {len(states)} stages ran")


class Runner(Protocol):
    """Updates stages: a ``LocalRunner`` or a ``Cluster``."""

    def update(self, request: StageRequest, ended: guard.Ended, listener: Listener) -> Outcome:
        """Updates one stage."""


class _Work:
    """The stages of one pipeline at work.

    Attributes:
        failures: name of a stage -> its error at the last try.
    """

    def __init__(self, runner: Runner, board: Board, devices_of: Mapping[str, int], force: bool) -> None:
        self._runner, self._board, self._devices_of, self._force = runner, board, devices_of, force
        self._ended = guard.Ended()
        self.failures: dict[str, StageFailedError] = {}

    def run(self, nodes: Mapping[str, Node], run_id: UUID) -> bool:
        """Has Prefect run a task for each stage; returns whether somebody cancelled the flow meanwhile."""
        update = task(
            self._update,
            name="bring",  # Prefect's pages have it from the first version on
            task_run_name="{stage}",
            retries=len(RETRY_SECONDS),
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=lambda _task, _run, state: not self._ended.is_set() and _may_pass(state),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        futures: dict[str, PrefectFuture] = {}
        cancelled = threading.Event()
        watch = partial(copy_context().run, _watch, run_id, self._ended, cancelled)  # Prefect's settings are in it
        threading.Thread(target=watch, daemon=True).start()
        try:
            for name, node in nodes.items():
                futures[name] = update.submit(name, wait_for=[futures[need] for need in node.needs])
            for future in futures.values():
                future.wait()
        finally:
            self._ended.set()
            for future in futures.values():  # until all that they started is gone
                future.wait()
        return cancelled.is_set()

    def _update(self, stage: str) -> State:
        log, board = get_run_logger(), self._board

        def begins(device: str) -> None:
            board.set(stage, live.RUNNING, device)
            if device:
                log.info("on %s", device)

        def says(line: str) -> None:
            board.say(stage, line)
            log.info("%s", line)

        request = StageRequest(stage, self._devices_of[stage], board.usual.get(stage, 0), self._force)
        listener = Listener(partial(board.set, stage, live.QUEUED), begins, says)
        try:
            outcome = self._runner.update(request, self._ended, listener)
        except StageError as error:
            outcome = Outcome("", error.status, str(error))
        except Exception as error:  # a fault of ours, which is to be seen as the failure of this stage
            log.exception("a fault of convoy's own")
            outcome = Outcome("", 1, f"{type(error).__name__}: {error}")
        if outcome.status != 0:
            self.failures[stage] = StageFailedError(stage, outcome.status, outcome.reason)
            board.set(stage, live.FAILED)
            raise self.failures[stage]
        self.failures.pop(stage, None)
        board.set(stage, outcome.state)
        name = {"ran": "Ran", "cached": "Cached"}.get(outcome.state, "UpToDate")
        return Completed(name=name, message=outcome.state)


def _may_pass(state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailedError) and error.passing


def _mark_crashed(before: dict, logger) -> None:
    message = f"process {before['pid']} on {before['host']} died"
    logger.warning("the last %s did not end: %s; going on from there", before.get("what", "pipeline"), message)
    if "flow_run" not in before:  # it was a cluster's worker
        return
    with get_client(sync_client=True) as client, suppress(Exception):  # another server may be in use since
        former = client.read_flow_run(UUID(before["flow_run"]))
        if former.state is not None and not former.state.is_final():
            client.set_flow_run_state(former.id, Crashed(message=message), force=True)


def _watch(run_id: UUID, ended: guard.Ended, cancelled: threading.Event) -> None:
    """Ends everything when somebody cancels the run in Prefect."""
    with get_client(sync_client=True) as client:
        while not ended.wait(POLL_SECONDS):
            with suppress(Exception):  # a server that is down for a while
                state = client.read_flow_run(run_id).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancelled.set()
                    ended.set()
