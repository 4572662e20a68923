"""The store of MLflow: where it is, whether it answers, and what its errors mean."""

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from convoy import CODE, PACKAGES, files
from convoy.errors import ConfigurationError, ServiceError, StageError
from convoy.secrets import mask_in, masked
from convoy.tracking import relocation

KIND = {"mlflow.experimentKind": "custom_model_development"}  # its pages are those of trainings, not of chats
# Of requests to a server; MLflow's own defaults are minutes for each.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Lines of MLflow's own: a bar for each file, and addresses with the login that is in them.
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
TRANSFER_SECONDS = "120"  # until a server answers that has to store a file first
SILENT_SECONDS = 2.0  # of waiting for a first answer before a line about it
NOTE_SECONDS = 10.0  # of sending or fetching files before a line about it
ANSWER_SECONDS = 30.0  # until the first answer is whole: longer than PATIENCE, which a server may use up byte by byte
REFUSED = "INVALID_PARAMETER_VALUE"  # it would be so another time too
GONE = "RESOURCE_DOES_NOT_EXIST"
DENIED = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}


def uri() -> str:
    """Returns the address of the tracking server or database; the default does not depend on who asks from where."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or local_uri()
    scheme, separator, path = address.partition(":///")
    if scheme == "sqlite" and separator and not path.startswith("/"):
        return f"sqlite:///{Path.cwd() / path}"
    return address


def place() -> str:
    """Returns ``uri`` fit for a message: without a password."""
    return masked(uri()) if "://" in uri() else uri()


def warn(text: str) -> None:
    """Prints a warning, if anybody still listens: the stage that a shipper works for may have ended."""
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def transferring() -> Iterator[None]:
    """Gives a server time to store a file before it answers."""
    before = {variable: os.environ.get(variable) for variable in PATIENCE}
    note = threading.Timer(NOTE_SECONDS, warn, [f"{place()} is slow with files; waiting up to {TRANSFER_SECONDS} s"])
    note.daemon = True
    if uri().startswith("http"):
        note.start()
    if before == PATIENCE:  # no user's own
        os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": TRANSFER_SECONDS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    try:
        yield
    finally:
        note.cancel()
        os.environ |= {variable: value for variable, value in before.items() if value is not None}


def explained(error: Exception) -> StageError | None:
    """Returns what an error that MLflow raised means to a user: its store is away, locked, or no store of MLflow's."""
    if isinstance(error, MlflowException):
        if error.error_code in (GONE, REFUSED):
            return ServiceError(f"{place()} refused: {first_line(error)}. What was trained is kept.")
        return refusal(error) or ServiceError(
            f"{place()} cannot be used now: {first_line(error)}. What was trained is kept; run again when it can."
        )
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    theirs = Path(mlflow.__file__).parent
    if not uri().startswith("http") or not any(file.is_relative_to(theirs) for file in frames):
        return None
    if any(frames[-1].is_relative_to(CODE / package) for package in PACKAGES):  # a defect in what MLflow calls
        return None
    if isinstance(error, OSError):  # as requests has it, of a proxy of files
        return ServiceError(f"{place()} cannot be used now: {first_line(error)}. Run again when it can.")
    return stranger(error)


def refusal(error: MlflowException) -> ConfigurationError | None:
    """Returns what to do where a server asks for a login, or for more rights."""
    status = DENIED.get(error.error_code)
    if isinstance(error, RestException) and "error_code" not in error.json:  # MLflow drops the status of such an answer
        status = _status()
    if status not in DENIED.values():
        return None
    what = {
        401: "asks for a login (401). Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN",
        403: "does not let this user do that (403). Ask whoever keeps the server for the right to write there",
    }[status]
    return ConfigurationError(f"{place()} {what}. It said: {first_line(error)}")


def _status() -> int | None:
    """Returns the HTTP status with which the server answers a question; None: it does not answer."""
    try:
        creds = MlflowClient()._tracking_client.store.get_host_creds()
        return http_request(creds, "/api/2.0/mlflow/experiments/get", "GET", params={"experiment_id": "0"}).status_code
    except (MlflowException, AttributeError):  # the second: what refused is a registry beside a local store
        return None


def stranger(error: Exception | str) -> ServiceError:
    """Returns what to say of a server that does not answer as MLflow does."""
    said = error if isinstance(error, str) else f"{type(error).__name__}: {first_line(error)}"
    return ServiceError(
        f"{place()} does not answer as MLflow does ({said}). Is MLFLOW_TRACKING_URI its address, and not that of a "
        "login page or a proxy? What was trained is kept; run again."
    )


def connect() -> MlflowClient:
    """Points MLflow at the store, which is created once: half-created databases are why parallel first starts fail."""
    address = uri()
    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    os.environ.update(QUIET)
    mlflow.set_tracking_uri(address)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    for name in ("alembic", "mlflow.store.artifact", "mlflow.store.model_registry"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each further try is no news; that all failed is
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints tracebacks of what it also raises
    try:
        if address == local_uri():
            database = Path.cwd() / "mlflow.db"
            with FileLock(f"{database}.lock"):
                if not database.exists():
                    with files.replacement(database) as partial:
                        MlflowClient(f"sqlite:///{partial}").search_experiments()
                relocation.follow(Path.cwd())
        client = MlflowClient()
    except SQLAlchemyError as error:  # of its first look at the database MLflow lets it through
        raise MlflowException(str(error)) from error
    if address.startswith("http") and address not in _greeted:
        _greet(client)
        _greeted.add(address)
    return client


_greeted: set[str] = set()  # addresses of servers that answered this process as MLflow does
_named: set[str] = set()  # those that people were told to wait for: once


def _greet(client: MlflowClient) -> None:
    """Asks a server something before anything is sent to it; prints a line where the answer takes long.

    Raises:
        ConfigurationError: it asks for a login, or for more rights.
        ServiceError: it answers, and not as MLflow does.
        MlflowException: it does not answer.
    """
    raised: list[Exception] = []

    def ask() -> None:
        try:
            _ask_who(client)
        except Exception as error:
            raised.append(error)

    # In a thread, since no limit of a request counts the time of an answer that comes byte by byte.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SILENT_SECONDS)
    if asking.is_alive():
        if place() not in _named:
            warn(f"{place()} has not answered yet; waiting up to {ANSWER_SECONDS:.0f} s")
        _named.add(place())
        asking.join(ANSWER_SECONDS - SILENT_SECONDS)
    if asking.is_alive():
        raise MlflowException(f"no whole answer within {ANSWER_SECONDS:.0f} s")
    for error in raised:
        if isinstance(error, MlflowException):
            for sign, said in (("valid JSON format", "its answer is no JSON"), ("error code 404", "404")):
                if sign in str(error):
                    raise stranger(said) from error
            raise refusal(error) or error
        raise error if isinstance(error, StageError) else stranger(error)


def _ask_who(client: MlflowClient) -> None:
    """Raises ServiceError where a server does not know experiments as MLflow does."""
    if any(one.experiment_id for one in client.search_experiments(max_results=1)):
        return
    try:  # all may be hidden from this user, or removed
        known = client.get_experiment("0").experiment_id == "0"
    except MlflowException as error:
        known = error.error_code in (GONE, "PERMISSION_DENIED")
        if not known:
            raise
    if not known:
        raise stranger("it knows no experiments")


def first_line(error: Exception) -> str:
    """Returns the line of a message that says why: the database's own, if there is one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = next((line for line in lines if re.match(r"\(\w+\.\w*Error\)", line)), lines[0])[:500]
    return mask_in(first, uri())


def local_uri() -> str:
    """Returns the address of the database in the checkout."""
    # Compared with, rather than "is the variable set": MLflow sets MLFLOW_TRACKING_URI itself.
    return f"sqlite:///{Path.cwd()}/mlflow.db"


def experiment_id(client: MlflowClient, dataset: str) -> str:
    """Returns the id of the experiment of a data set, created on first use."""
    # An absolute place: MLflow's own default depends on the folder in which a process happens to start.
    folder = Path.cwd() / relocation.ARTIFACTS / dataset if uri() == local_uri() else None
    known = client.get_experiment_by_name(dataset)
    if known is None:
        try:
            return client.create_experiment(dataset, artifact_location=folder and folder.as_uri(), tags=KIND)
        except MlflowException as error:  # another process was quicker
            known = client.get_experiment_by_name(dataset)
            if known is None:
                raise error
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    if folder is not None and not relocation.is_same(known.artifact_location, folder):
        raise ConfigurationError(
            f"mlflow.db keeps the files of {dataset!r} in {known.artifact_location}, not in {folder.as_uri()}: another "
            "tool made this experiment, or mlflow.db is that of another checkout. Rename the experiment, or mlflow.db "
            "to begin a new store."
        )
    return known.experiment_id
