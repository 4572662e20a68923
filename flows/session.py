"""The Prefect server that a flow reports to: the one that is set, else one that lives as long as the flow."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import prefect
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, temporary_settings

from convoy.errors import ConfigurationError, ServiceError
from convoy.machine import guard
from convoy.secrets import mask_in, masked, without_login

ANSWER_SECONDS = 10
_servers: list[subprocess.Popen] = []
START_SECONDS = 180  # Prefect's own limit of 20 is too short on a busy machine


class ServerLostError(ServiceError):
    """The server of a flow went away while it ran.

    Attributes:
        what: happened, without advice.
        gone: it still does not answer.
    """

    def __init__(self, address: str) -> None:
        self.gone = away(address) is not None
        self.what = f"the Prefect server {masked(address)} {'went away' if self.gone else 'was away for a while'}"
        super().__init__(f"{self.what}. Run again: what is done is kept.")


@contextmanager
def reporting() -> Iterator[str]:
    """Gives the address of a server that answers: the one that is set in Prefect, else one of our own.

    A server that does not answer keeps no pipeline from running: the work matters more. Ours is under a guard, since
    Prefect's own would stay behind when a flow is killed.
    """
    address = PREFECT_API_URL.value()
    if address:
        if (problem := away(address)) is None:
            # Prefect's five are a minute of waiting where the server is gone, for each of several requests.
            with temporary_settings(pages(), set_defaults={PREFECT_CLIENT_MAX_RETRIES: 2}):
                yield address
            return
        print(
            f"warning: the Prefect server {masked(address)} does not answer ({problem}); going on without it",
            file=sys.stderr,
        )
    address = start()
    with temporary_settings({PREFECT_API_URL: address}):
        yield address


def pages() -> dict[str, str]:
    """Returns the settings with which Prefect names its pages without the login that its server's address may have."""
    shown = PREFECT_UI_URL.value()
    return {PREFECT_UI_URL.name: without_login(shown)} if shown else {}


def away(address: str) -> str | None:
    """Returns why a server does not answer; None if it does."""
    try:
        httpx.get(f"{address}/health", timeout=ANSWER_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        return mask_in(str(error), address) or type(error).__name__
    return None


def start(port: int | None = None, ui: bool = False) -> str:
    """Starts a Prefect server on loopback, with the database of ``PREFECT_HOME``; returns its address.

    It ends with this process and not before: at its very end Prefect still sends what it has to say.

    Args:
        port: by default a free one.
        ui: serve its pages too.

    Raises:
        ServiceError: it does not start.
    """
    port = port or free_port()
    address = f"http://127.0.0.1:{port}/api"
    place = ["--host", "127.0.0.1", "--port", str(port)]
    program = ["--app-dir", str(Path(prefect.__file__).parent), "--factory", "prefect.server.api.server:create_app"]
    keep(
        ["uvicorn", *program, *place, "--log-level", "error", "--lifespan", "on"],
        f"{address}/health",
        {"PREFECT_UI_ENABLED": str(int(ui)), "PREFECT_API_URL": address, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
    )
    return address


def keep(
    command: Sequence[str], address: str, settings: Mapping[str, str] | None = None, cwd: str | None = None
) -> subprocess.Popen[str]:
    """Runs a module of Python as a server until this process ends, and waits until ``address`` answers.

    Args:
        command: the module and its arguments.
        address: what to ask whether it is there.
        settings: added to the environment.
        cwd: its working directory; by default ours.

    Raises:
        ServiceError: it ended, or START_SECONDS passed; with the last that it said.
    """
    process = guard.start([sys.executable, "-m", *command], env={**os.environ, **(settings or {})}, cwd=cwd)
    said: deque[str] = deque(maxlen=20)
    threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
    _servers.append(process)  # else the pipe that keeps it would be closed with the last name for it
    stop = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(address, timeout=ANSWER_SECONDS).raise_for_status()
            return process
        except httpx.HTTPError as error:
            if process.poll() is not None or time.monotonic() > stop:
                first, *more = "".join(said).strip().splitlines() or [str(error)]
                raise ServiceError(f"no server at {address}: {first}", *more) from error
            time.sleep(0.1)


def check_free(port: int, example: str) -> None:
    """Raises ConfigurationError where another program listens on a port of loopback; ``example`` says how to choose."""
    with socket.socket() as asking:
        if asking.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigurationError(f"another program listens on port {port}. Choose one: {example}")


def free_port() -> int:
    """Returns a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
