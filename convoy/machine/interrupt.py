"""Ctrl-C: a command ends with one line, which says how it goes on, wherever it is at that moment.

The first SIGINT raises KeyboardInterrupt, so that files are closed and the terminal is given back. The second one ends
the process and all that it started: what stages write survives a kill.
"""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from convoy.errors import ServiceError, StageError

LINE = "interrupted. Run again: it goes on from what is done."
CURSOR = b"\x1b[?25h"  # shows it again: a progress bar hides it

_status = ServiceError.status  # of the process that SIGINT ended
_asked = False  # SIGINT came
_said = False  # LINE, or the work has a line of its own
_begun = False  # there may be processes that this one started


def catch(status: int = ServiceError.status) -> None:
    """Has SIGINT end this process with LINE and ``status``; ``explained`` and ``release`` change that.

    An ignored SIGINT stays ignored.
    """
    global _status
    _status = status
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
        sys.unraisablehook = _swallowed


def release() -> None:
    """Has SIGINT raise KeyboardInterrupt, as Python does by itself: asyncio and Prefect count on that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = sys.__unraisablehook__


@contextmanager
def explained() -> Iterator[None]:
    """Turns whatever SIGINT makes of the work into one error.

    Raises:
        ServiceError: SIGINT came, and KeyboardInterrupt is what it raised, or what a library made of that: an
            ImportError, a broken pool.
    """
    global _begun, _said
    outermost = signal.getsignal(signal.SIGINT) is _end and not _asked
    if outermost:
        _begun = True
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except BaseException as error:
        _said = _asked or isinstance(error, KeyboardInterrupt | StageError)
        if _asked or isinstance(error, KeyboardInterrupt):
            interrupted = ServiceError(LINE)
            interrupted.status = _status
            raise interrupted from None
        raise
    finally:
        if outermost:
            signal.signal(signal.SIGINT, _end)


def leave(status: int) -> NoReturn:
    """Exits with ``status``.

    Python ends by SIGINT, whatever the status, once KeyboardInterrupt was raised in text that it executed, such as the
    methods of a dataclass, even if it was caught.
    """
    if not _asked:
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _interrupt(*_: object) -> NoReturn:
    global _asked
    _asked = True
    signal.signal(signal.SIGINT, _end)
    raise KeyboardInterrupt


def _end(*_: object) -> NoReturn:
    """Ends everything now."""
    if not _said:
        with suppress(OSError):  # who reads it may have got the same Ctrl-C
            os.write(2, f"error: {LINE}\n".encode())
    if _begun:
        from convoy.machine import orphans  # not before: an import may be what SIGINT came into

        orphans.end_children()
    if os.isatty(1):
        os.write(1, CURSOR)
    os._exit(_status)


def _swallowed(lost: Any) -> None:
    """Ends everything where KeyboardInterrupt is raised in a finalizer or callback, from which Python lets none out."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        _end()
    sys.__unraisablehook__(lost)
