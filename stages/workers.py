"""The one seam through which work over many examples goes: a ``concurrent.futures.Executor``.

On one machine it is a pool of processes, one per core that the process may use. With the address of a Dask scheduler in
Dask's own setting - ``DASK_SCHEDULER_ADDRESS=tcp://host:8786``, or ``scheduler-address`` in its configuration file - it
is that cluster. Its workers need this checkout on their path (``PYTHONPATH``) and see ``data/`` under the same path, as
on a shared file system.
"""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

from stages.errors import ServiceError

AHEAD = 3  # blocks submitted per worker before the first result is taken: keeps all busy and memory bounded


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        with ProcessPoolExecutor(cores(), mp_context=context) as pool:
            pool.workers = cores()
            yield pool


@contextmanager
def threads() -> Iterator[Executor]:
    """Gives one thread per core."""
    with ThreadPoolExecutor(cores()) as pool:
        pool.workers = cores()
        yield pool


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
