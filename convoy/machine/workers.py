"""The one seam through which work over many examples goes: a ``concurrent.futures.Executor``.

On one machine it is a pool of processes, one per core that the process may use. With the address of a Dask scheduler in
Dask's own setting - ``DASK_SCHEDULER_ADDRESS=tcp://host:8786``, or ``scheduler-address`` in its configuration file - it
is that cluster. Its workers need this checkout on their path (``PYTHONPATH``) and see ``data/`` under the same path, as
on a shared file system.
"""

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import Any

from convoy.errors import ServiceError
from convoy.machine.room import cores

AHEAD = 3  # blocks submitted per worker before the first result is taken: keeps all busy and memory bounded


@contextmanager
def executor(small: bool = False, *modules: str) -> Iterator[Executor]:
    """Gives the executor to work with, and ends it.

    Args:
        small: the work takes less than starting processes does; threads of this one are used.
        modules: what the work needs; imported once, not in each process.

    Raises:
        ServiceError: no scheduler answers at Dask's address.
    """
    import dask.config  # here, as every worker imports this file

    if address := dask.config.get("scheduler-address", None):
        from distributed import Client  # half a second that only a cluster is worth

        try:
            client = Client(address, set_as_default=False)  # waits as long as Dask's own setting says
        except OSError as error:
            raise ServiceError(f"no Dask scheduler answers at {address}: {error}. Run again when it does.") from error
        with client, client.get_executor(pure=False) as pool:
            pool.workers = sum(client.nthreads().values()) or 1
            yield pool
    elif small:
        with threads() as pool:
            yield pool
    else:
        # A fork of this process would inherit the locks of its threads (progress bar, Arrow); a fork server has none.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload([*modules])
        if sys.platform == "linux":
            resource_tracker.ensure_running()  # which the fork server would start, and hear SIGINT from then on
            with _deaf():
                forkserver.ensure_running()
        with ProcessPoolExecutor(cores(), mp_context=context, initializer=_end_silently) as pool, _no_more(pool):
            pool.workers = cores()
            yield pool


@contextmanager
def threads() -> Iterator[Executor]:
    """Gives one thread per core."""
    with ThreadPoolExecutor(cores()) as pool, _no_more(pool):
        pool.workers = cores()
        yield pool


@contextmanager
def _no_more(pool: Executor) -> Iterator[None]:
    """Has a pool end without the work that waits in it, where an error makes that useless."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)  # what is under way may read files that go with this context
        raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Keeps SIGINT from the processes that are started in it; this one gets it at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_silently() -> None:
    """Has Ctrl-C end this process; by itself Python would print where it was."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of what a script starts in the background
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def map_ahead(pool: Executor, function: Callable[..., Any], blocks: Iterable[Any], *arguments: Any) -> Iterator[Any]:
    """Yields ``function(block, *arguments)`` for each block, in order, with few blocks in flight at a time.

    ``pool`` is one of this module.
    """
    blocks = iter(blocks)
    ahead = AHEAD * pool.workers
    waiting = deque(pool.submit(function, block, *arguments) for block in islice(blocks, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, block, *arguments) for block in islice(blocks, 1))
