"""Both pages to look at, MLflow's and Prefect's, on loopback: ``convoy ui``."""

import time
from contextlib import suppress

from prefect.settings import PREFECT_API_URL

from convoy.secrets import without_login
from convoy.tracking import store
from flows import session


def serve(port: int, prefect_port: int) -> None:
    """Starts what is not running elsewhere, waits until it answers, prints the addresses, and ends it with Ctrl-C.

    Args:
        port: of MLflow.
        prefect_port: of Prefect.

    Raises:
        ConfigurationError: another program listens on a port.
        ServiceError: a server does not start.
    """
    mlflow, prefect = store.uri(), PREFECT_API_URL.value()
    if not mlflow.startswith("http"):
        session.check_free(port, "convoy ui --port ...")
        place = ["--host", "127.0.0.1", "--port", str(port)]
        # Which, unlike arguments, other users of the machine cannot read.
        environment = {"MLFLOW_BACKEND_STORE_URI": mlflow}
        mlflow = f"http://127.0.0.1:{port}"
        session.keep(["mlflow", "server", *place], f"{mlflow}/health", environment)
    if not prefect:
        session.check_free(prefect_port, "convoy ui --prefect-port ...")
        prefect = session.start(prefect_port, ui=True)
        print(f"To have flows appear there: export PREFECT_API_URL={prefect}")
    pages = without_login(mlflow), without_login(prefect.removesuffix("/api"))
    print(f"MLflow:  {pages[0]}\nPrefect: {pages[1]}\nCtrl-C ends them.", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
