"""``convoy run``: the flow, its table, and the same once more where the Prefect server went away."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from stages import check

if TYPE_CHECKING:
    from prefect.states import State

    from flows.session import ServerLostError

BEGUN = "CONVOY_BEGUN"  # Unix time: this command goes on for one that began then, and whose Prefect server went away


def run(targets: Sequence[str], slots: int | None, force: bool, cluster: str | None) -> int:
    """Runs the pipeline and prints its table; returns the exit status.

    The arguments are those of ``flows.pipeline.pipeline``.

    Raises:
        StageError: of the first stage that failed; or the Prefect server went away twice.
    """
    begun = os.environ.pop(BEGUN, None)  # only here: what this starts is no second try
    since = int(begun or time.time())
    check.check()  # before the seconds in which Prefect is imported
    from flows import session
    from flows.show import results

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = _run_flow(list(targets), slots, force, cluster)
    except session.ServerLostError as error:
        if begun or force:  # forced, what is done would be done again
            raise
        _begin_again(error, since)
    if state.is_completed() or results.ran_since(since):
        results.show(since, targets)
    if state.is_cancelled():
        print("cancelled in Prefect; the next run goes on from there", file=sys.stderr)
        return 130
    state.result()
    return 0


def _run_flow(*arguments: Any) -> "State":
    """Runs the flow.

    Raises:
        ServerLostError: Prefect's server went away meanwhile; nobody asked the flow to end.
    """
    from httpx import HTTPError, HTTPStatusError

    from flows import session
    from flows.pipeline import pipeline

    with session.reporting() as address, session.quiet(sys.stdout.isatty()):
        try:
            state = pipeline(*arguments, return_state=True)
        except HTTPError as error:
            _end_if_asked(error)
            if isinstance(error, HTTPStatusError) and not error.response.is_server_error:
                raise
            raise session.ServerLostError(address) from error
    if state.is_crashed() and session.away(address):
        raise session.ServerLostError(address)
    return state


def _end_if_asked(error: BaseException) -> None:
    """Ends as Ctrl-C or SIGTERM ask for, if they are what Prefect could not tell its server."""
    from prefect.exceptions import TerminationSignal

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt | SystemExit):
            raise seen from None
        if isinstance(seen, TerminationSignal):
            sys.exit(128 + seen.signal)
        seen = seen.__cause__ or seen.__context__


def _begin_again(lost: "ServerLostError", since: int) -> NoReturn:
    """Replaces this process by the same command: what is done is kept.

    This one would wait at its end to tell the server that is gone of each task, ten seconds and more for each.
    """
    print(
        f"warning: {lost.what}; going on {'without it ' if lost.gone else ''}from what is done",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    if lost.gone:
        os.environ["PREFECT_API_URL"] = ""  # also where a profile sets it
    os.environ[BEGUN] = str(since)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
