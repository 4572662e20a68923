"""Both pages to look at, MLflow's and Prefect's, on loopback: ``make ui``."""

import time
from contextlib import suppress

import httpx
from prefect.settings import PREFECT_API_URL

from flows import server
from stages import tracking
from stages.errors import ConfigurationError


def serve(port: int, prefect_port: int) -> None:
    """Starts what is not running elsewhere, waits until it answers, prints the addresses, and ends it with Ctrl-C.

    Args:
        port: of MLflow.
        prefect_port: of Prefect.

    Raises:
        ConfigurationError: another program listens on a port.
        ServiceError: a server does not start.
    """
    mlflow, prefect = tracking.uri(), PREFECT_API_URL.value()
    if not mlflow.startswith("http"):
        _check_free(port, "PORT")
        place = ["--host", "127.0.0.1", "--port", str(port)]
        command = ["mlflow", "server", "--backend-store-uri", mlflow, *place]
        mlflow = f"http://127.0.0.1:{port}"
        server.keep(command, f"{mlflow}/health")
    if not prefect:
        _check_free(prefect_port, "PREFECT_PORT")
        prefect = server.start(prefect_port, ui=True)
        print(f"To have flows appear there: export PREFECT_API_URL={prefect}")
    print(f"MLflow:  {mlflow}\nPrefect: {prefect.removesuffix('/api')}\nCtrl-C ends them.", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _check_free(port: int, option: str) -> None:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx.TransportError:
        return
    raise ConfigurationError(f"another program listens on port {port}. Choose one: make ui {option}=...")
