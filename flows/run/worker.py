"""A worker of a cluster: offers its clone to the coordinators that send orders."""

import asyncio
import os
import signal
import socket
import tempfile
import threading
from dataclasses import dataclass
from functools import partial

import dask.config
from distributed import Status, Worker, get_worker

from convoy.errors import StageError
from convoy.machine.guard import Ended
from convoy.machine.room import cores
from convoy.repo import lockfile
from flows.run import devices
from flows.run.clone import Clone
from flows.run.exclusive import claim
from flows.run.orders import CPU, GPU, POLL_SECONDS, STAGES, Delivery, Order, require_remote
from flows.run.runner import Listener, Outcome

RETRY_SECONDS = 5.0  # between two tries to reach the scheduler

_clone: Clone | None = None  # of this process, if it is a worker


def serve(address: str, slots: int | None) -> None:
    """Works in this clone for the coordinators of a cluster, until it is ended.

    Args:
        address: of the scheduler; it may start later, or again.
        slots: as in ``pipeline``.

    Raises:
        BusyError: a pipeline or another worker is at work in this clone.
        ConfigurationError: there is no remote; or ``slots`` is not a number of slots.
    """
    global _clone
    os.environ["DASK_SCHEDULER_ADDRESS"] = ""  # a stage's own work over many examples stays in its clone
    require_remote()
    found = devices.find(slots)
    with claim("worker", lambda _: None):
        lockfile.mend()
        _clone = Clone(found)
        _ = _clone.code
        with dask.config.set({"scheduler-address": None}):
            asyncio.run(_serve(address, found))


async def _serve(address: str, slots: list[devices.Slot]) -> None:
    """Joins the scheduler, and joins it again whenever it comes back, until a signal ends this process."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    end, last = asyncio.create_task(stopped.wait()), ""
    while not stopped.is_set():
        start = asyncio.create_task(_join(address, slots))  # Dask itself waits for a scheduler that does not answer
        await asyncio.wait([start, end], return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            return
        if error := start.exception():  # e.g. the scheduler still has a dead worker of this name
            problem = f"the scheduler {address} does not take {_clone.name} yet: {error.__cause__ or error}"
            if problem != last:
                print(problem, flush=True)
            last = problem
            await asyncio.wait([end], timeout=RETRY_SECONDS)
            continue
        worker, last = start.result(), ""
        print(f"works for {address} in {_clone.name}, on {', '.join(slot.name for slot in slots)}", flush=True)
        gone = asyncio.create_task(worker.finished())
        await asyncio.wait([gone, end], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.to_thread(_clone.stop)
        await worker.close(executor_wait=False)
        if not stopped.is_set():
            print(f"the scheduler {address} is gone; waiting for it", flush=True)


async def _join(address: str, slots: list[devices.Slot]) -> Worker:
    kind = GPU if slots[0].name.startswith("gpu") else CPU
    return await Worker(
        address,
        name=_clone.name,
        nthreads=len(slots) + cores(),  # the resources bound what runs at once
        resources={kind: len(slots), STAGES: cores()},
        local_directory=tempfile.gettempdir(),
        dashboard=False,
    )


def find_problem(code: dict[str, str]) -> str | None:
    """``Clone.find_problem``, on a worker."""
    return _clone.find_problem(code)


@dataclass(frozen=True)
class Call:
    """``_execute(order)``, which happens where it is unpickled: the value is the delivery."""

    order: Order

    def __reduce__(self) -> tuple:
        return _execute, (self.order,)


def _execute(order: Order) -> Delivery:
    """``Clone.update``, on a worker."""
    worker = get_worker()
    key, over, ended = worker.get_current_task(), threading.Event(), Ended()

    def watch() -> None:
        """Ends the stage when nobody needs it: the coordinator or the scheduler is gone, or has released it."""
        while not over.wait(POLL_SECONDS):
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
        return _clone.update(order, ended, listener)
    except StageError as error:
        return Delivery(Outcome("up to date", error.status, f"{_clone.name}: {error}"), {}, [])
    finally:
        over.set()
