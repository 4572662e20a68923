"""The graph of dvc.yaml as a Prefect flow: a task per stage, in parallel, each with a device of its own if it trains.

Every stage is brought up to date by ``dvc --wait-for-lock repro --single-item`` in a process of its own, so that
dvc.lock is what ``dvc repro`` would have written, and what is up to date does not run.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import flow, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import get_run_context
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Crashed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import board, devices, graph, guard, journal
from flows.board import Board
from stages import __main__ as stages_command
from stages import params, tracking
from stages.errors import BusyError, ServiceError, StageError
from stages.workers import cores

RETRY_SECONDS = [10.0, 60.0, 300.0]  # before each new try
LOOK_SECONDS = 2.0  # between two looks whether somebody cancelled the run
THREADS = 1000  # every stage waits in one
HERE = Path("data/.pipeline.json")  # what runs now, or died
# What may be better next time: busy (5), an outside service (6), and what left no status - killed.
PASSING = (BusyError.status, ServiceError.status, None)
MEMORY = re.compile(r"MemoryError|ResourceExhausted|CUDA_ERROR_OUT_OF_MEMORY|[Oo]ut of memory")
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")
# Of dvc: what became of a stage.
RAN = re.compile(r"Running stage '(.+)':")
EXITED = re.compile(r"exited with (-?\d+)")
CACHED = re.compile(r"Stage '(.+)' is cached - skipping run")


class StageFailedError(StageError):
    """A stage that ended with another status than 0."""

    def __init__(self, name: str, status: int | None, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.own = name, status
        self.status = 1 if status is None else status
        self.passing = status in PASSING or MEMORY.search(why) is not None


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=THREADS), persist_result=False)
def pipeline(targets: list[str] | None = None, slots: int | None = None, force: bool = False) -> State:
    """Brings stages up to date, as many at once as can be.

    A stage that fails does not stop the others; what needs it is not run. What may pass - killed, out of memory,
    another at it, a service down - is tried again.

    Args:
        targets: stages, or kinds of stages (``train``), and all that they need; by default everything.
        slots: trainings at once; by default one per GPU, without one a single one (``devices.found``).
        force: run them even if nothing changed.

    Returns:
        Completed, or Cancelled where somebody cancelled it in Prefect.

    Raises:
        StageError: of the first stage in order that failed, with that stage's exit status.
        BusyError: another pipeline runs in this checkout.
    """
    stages_command.check()
    nodes = graph.read(targets or ())
    sections = params.load()
    places = devices.Slots(devices.found(slots))
    ended, failures = threading.Event(), {}
    guards: set = set()
    others = threading.BoundedSemaphore(cores())
    run_id, logger = get_run_context().flow_run.id, get_run_logger()

    with _alone(run_id, logger), Board(nodes, len(places.all)) as shown:

        @task(
            task_run_name="{stage}",
            retries=len(RETRY_SECONDS),
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=lambda _task, _run, state: not ended.is_set() and _may_pass(state),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        def bring(stage: str) -> State:
            log = get_run_logger()
            training = nodes[stage].group == "train"
            taken = None
            with ExitStack() as stack:
                if training:
                    count = sections["train"].get(nodes[stage].entry, {}).get("devices", 1)
                    queued = partial(shown.set, stage, board.QUEUED)
                    taken = stack.enter_context(places.taken(count, ended, queued, shown.usual.get(stage, 0)))
                else:
                    stack.enter_context(others)
                if ended.is_set():
                    raise StageFailedError(stage, None, "the pipeline was ended")
                shown.set(stage, board.RUNNING, taken.name if taken else "")
                if taken:
                    log.info("on %s", taken.name)
                command = [*DVC, "--single-item", *["--force"] * force, stage]
                before = journal.size()
                process = guard.start(
                    command,
                    env=guard.environment() | (taken.environment if taken else {}),
                    holding=taken.locks if taken else (),
                )
                guards.add(process)
                if ended.is_set():
                    guard.end(process)
                try:
                    state, last = _followed(process, lambda line: (shown.say(stage, line), log.info("%s", line)))
                finally:
                    guards.discard(process)
                    guard.end(process)
            if process.wait():
                own = _own_status(stage, before, last)
                why = "the pipeline was ended" if ended.is_set() else _why(last, own, state)
                failures[stage] = StageFailedError(stage, own if state == "ran" else 1, why)
                shown.set(stage, board.FAILED)
                raise failures[stage]
            failures.pop(stage, None)
            shown.set(stage, state)
            return Completed(name={"ran": "Ran", "cached": "Cached"}.get(state, "UpToDate"), message=state)

        futures: dict[str, PrefectFuture] = {}
        cancelled = threading.Event()
        watch = partial(copy_context().run, _watch, run_id, ended, cancelled, guards)  # Prefect's settings are in it
        threading.Thread(target=watch, daemon=True).start()
        try:
            for name, node in nodes.items():
                futures[name] = bring.submit(name, wait_for=[futures[need] for need in node.needs])
            for future in futures.values():
                future.wait()
        finally:
            ended.set()
            for process in list(guards):
                guard.end(process)
            for process in list(guards):
                process.wait()
        shown.finish()
    if cancelled.is_set():
        return Cancelled(message="cancelled in Prefect")
    states = {name: row.state for name, row in shown.rows.items()}
    for name, state in states.items():
        logger.info("%s: %s", name, state)
    if failures:
        raise next(failures[name] for name in nodes if name in failures)
    if not_run := [name for name, state in states.items() if state not in board.DONE]:
        raise StageError(f"not run: {', '.join(not_run)}")
    return Completed(message=f"{sum(state == 'ran' for state in states.values())} of {len(states)} stages ran")


def _followed(process, tell) -> tuple[str, list[str]]:
    """Passes on what a stage prints; returns what became of it, and its last lines."""
    state, last = "up to date", deque(maxlen=50)
    for line in process.stdout:
        line = line.rstrip("\n")
        if RAN.match(line):
            state = "ran"
        elif CACHED.match(line):
            state = "cached"
        if line.strip():
            last.append(line)
            tell(line)
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


def _may_pass(state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailedError) and error.passing


@contextmanager
def _alone(run_id: UUID, logger) -> Iterator[None]:
    """Keeps other pipelines out of this checkout, and marks the one before as crashed if it died.

    Raises:
        BusyError: another one runs.
    """
    HERE.parent.mkdir(exist_ok=True)
    lock = FileLock(HERE.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        before = json.loads(HERE.read_text()) if HERE.exists() else {}
        since = time.strftime("%H:%M:%S", time.localtime(before.get("started", 0)))
        raise BusyError(
            f"another pipeline runs here, since {since}: process {before.get('pid')} on {before.get('host')}."
        ) from None
    try:
        if HERE.exists():
            _mark_crashed(json.loads(HERE.read_text()), logger)
        tracking.end_abandoned()
        facts = {"flow_run": str(run_id), "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        HERE.write_text(json.dumps(facts))
        yield
    finally:
        HERE.unlink(missing_ok=True)
        lock.release()


def _mark_crashed(before: dict, logger) -> None:
    message = f"process {before['pid']} on {before['host']} died"
    logger.warning("the last pipeline did not end: %s; going on from there", message)
    with get_client(sync_client=True) as client, suppress(Exception):  # another server may be in use since
        former = client.read_flow_run(UUID(before["flow_run"]))
        if former.state is not None and not former.state.is_final():
            client.set_flow_run_state(former.id, Crashed(message=message), force=True)


def _watch(run_id: UUID, ended: threading.Event, cancelled: threading.Event, guards: set) -> None:
    """Ends everything when somebody cancels the run in Prefect."""
    with get_client(sync_client=True) as client:
        while not ended.wait(LOOK_SECONDS):
            with suppress(Exception):  # a server that is down for a while
                state = client.read_flow_run(run_id).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancelled.set()
                    ended.set()
                    for process in list(guards):
                        guard.end(process)
