"""The Prefect server that a flow reports to: the one that is set, else one that lives as long as the flow."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

ANSWER_SECONDS = 10


@contextmanager
def reachable() -> Iterator[None]:
    """Makes Prefect start a server of its own where the one that is set does not answer: the work matters more."""
    address = PREFECT_API_URL.value()
    problem = None
    if address:
        try:
            httpx.get(f"{address}/health", timeout=ANSWER_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
    if problem is None:
        yield
        return
    print(f"warning: the Prefect server {address} does not answer ({problem}); going on without it", file=sys.stderr)
    with temporary_settings({PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}, restore_defaults={PREFECT_API_URL}):
        yield


@contextmanager
def quiet(drawn: bool) -> Iterator[None]:
    """Keeps Prefect's log off a terminal on which the table is ``drawn``; its server has it all the same."""
    loggers = [logging.getLogger(name) for name in ("root", "prefect", *logging.root.manager.loggerDict)]
    taken = [
        (logger, handler) for logger in loggers for handler in logger.handlers
        if drawn and isinstance(handler, PrefectConsoleHandler)
    ]  # fmt: skip
    for logger, handler in taken:
        logger.removeHandler(handler)
    try:
        yield
    finally:
        for logger, handler in taken:
            logger.addHandler(handler)
