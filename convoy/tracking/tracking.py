"""The only door to MLflow: runs, numbers, pictures, and the registry with its champions.

Without ``MLFLOW_TRACKING_URI`` everything lies in the checkout: ``mlflow.db`` (SQLite) and ``mlartifacts/``.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, LoggedModel, Metric, Param, Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from convoy import CODE
from convoy.checksums import sha256
from convoy.errors import ConfigurationError, IntegrityError, ServiceError, StageError
from convoy.model import safe_load
from convoy.secrets import mask_in, masked, redacted_values
from convoy.tracking import outbox, relocation

if TYPE_CHECKING:
    import keras
    import pandas as pd

CHAMPION = "champion"
TAKES = "input.json"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # its pages are those of trainings, not of chats
PATCH = "git.patch"  # of a run: what differed from its commit
DIGEST = 36  # characters of a data set's digest that MLflow takes
SAMPLE_SECONDS = 2  # between two readings of CPU, memory and GPU
STORED = "stored_sha256"  # tag of a version: the fingerprint of its files
LOADED = "registered_model_meta"  # what MLflow adds to them
RECORD = "record"  # tag of a run: the id of what it was shipped from; see record.py
POLL_SECONDS = 0.2  # between two looks at a record that is being written
RETRY_SECONDS = 15.0  # between two tries of a store that could not be reached
# Of requests to a server; MLflow's own defaults are minutes for each.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# Lines of MLflow's own: a bar for each file, and addresses with the login that is in them.
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
TRANSFER_SECONDS = "120"  # until a server answers that has to store a file first
SILENT_SECONDS = 2.0  # of waiting for a first answer before a line about it
NOTE_SECONDS = 10.0  # of sending or fetching files before a line about it
ANSWER_SECONDS = 30.0  # until the first answer is whole: longer than PATIENCE, which a server may use up byte by byte
SHIPPER_SECONDS = 300.0  # of waiting for another process that brings the same record
REFUSED = "INVALID_PARAMETER_VALUE"  # it would be so another time too
GONE = "RESOURCE_DOES_NOT_EXIST"
DENIED = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
OURS = ("model", "model_sha256")  # tags of every version that register made


def uri() -> str:
    """Returns the address of the tracking server or database; the default does not depend on who asks from where."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or _local()
    scheme, separator, path = address.partition(":///")
    if scheme == "sqlite" and separator and not path.startswith("/"):
        return f"sqlite:///{Path.cwd() / path}"
    return address


def place() -> str:
    """Returns ``uri`` fit for a message: without a password."""
    return masked(uri()) if "://" in uri() else uri()


class Unneeded(NamedTuple):
    """What ``remove`` may remove: registered versions, ids of runs, and of stored models."""

    versions: list[ModelVersion]
    runs: list[str]
    models: list[str]


@contextmanager
def run(
    name: str, dataset: str, parameters: dict[str, Any], inputs: dict[str, str], former: str | None = None
) -> Iterator[str]:
    """Opens the MLflow run ``name`` in the experiment of ``dataset`` and yields its id.

    Args:
        name: DVC's name of the stage, e.g. ``train@lenet5``.
        dataset: the experiment.
        parameters: logged as they are; nested mappings with dots.
        inputs: path -> SHA-256 of what the run reads.
        former: id of the run that was begun for the same and is to go on, if the store still has it.
    """
    client = _connect()
    tags, patch = outbox.tags(name, dataset, inputs)
    mlflow.set_system_metrics_sampling_interval(SAMPLE_SECONDS)
    experiment = _experiment(client, dataset)
    with mlflow.start_run(
        _known(client, former), experiment, run_name=name, tags=tags, log_system_metrics=True
    ) as active:
        mlflow.log_params(redacted_values(outbox.flat(parameters)))
        if patch:
            mlflow.log_text(patch, PATCH)
        yield active.info.run_id


@contextmanager
def nested(parent: str, name: str, parameters: dict[str, Any]) -> Iterator["Nested"]:
    """Opens a run within the run ``parent``; any thread may have several, beside the one that is open.

    It ends as FINISHED, as FAILED if an exception leaves the context, or as ``Nested.end`` says.

    Args:
        parent: id of the outer run.
        name: of the inner.
        parameters: logged as they are; nested mappings with dots.
    """
    client = _connect()
    outer = client.get_run(parent)
    tags = {key: outer.data.tags[key] for key in ("stage", "model", "dataset", "git.commit", "git.dirty")}
    tags |= {MLFLOW_PARENT_RUN_ID: parent, "process": outbox.process(os.getpid())}
    inner = client.create_run(outer.info.experiment_id, run_name=name, tags=tags).info.run_id
    opened = Nested(client, inner)
    try:
        said = redacted_values(outbox.flat(parameters))
        client.log_batch(inner, params=[Param(key, str(value)) for key, value in said.items()])
        yield opened
    except BaseException:
        opened.status = "FAILED"
        raise
    finally:
        client.set_terminated(inner, opened.status)


class Nested:
    """A run within another.

    Attributes:
        status: MLflow's name of how it ends.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.status = "FINISHED"
        self._client, self._run_id = client, run_id

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        """Adds numbers, e.g. one epoch's."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in numbers.items() if key != "epoch"]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, state: str, status: str) -> None:
        """Says how it will have ended: in a word, which becomes the tag ``state``, and in MLflow's."""
        self._client.set_tag(self._run_id, "state", state)
        self.status = status


@contextmanager
def reopened(facts: dict[str, Any]) -> Iterator[str]:
    """Continues the run of a training, given its ``run.json``; yields MLflow's id of it. Its end stays the training's.

    What the training said and could not be brought here is brought first; see ``record.reopened`` for one that this
    store does not know. Records of other trainings keep nobody waiting.

    Raises:
        ServiceError: the store cannot be reached, or another process does not get done with the record.
    """
    _bring_record(facts["run_id"])
    try:
        ship()
    except StageError as error:
        _warn(str(error))
    client = _connect()
    tags = {"stage": "train", "model": facts["model"], "dataset": facts["dataset"]}
    run_id = _recorded(client, facts["run_id"], f"train@{facts['model']}", facts["dataset"], tags)
    ended, status = client.get_run(run_id).info.end_time, "FAILED"
    try:
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            yield run_id
        status = "FINISHED"
    finally:
        if ended is not None:  # the duration that the browser shows is without the hours until now
            client.set_terminated(run_id, status, end_time=ended)


def _bring_record(number: str) -> None:
    """Brings a record, or waits until the process that follows it has.

    Raises:
        ServiceError: the store cannot be reached, or that process does not get done.
    """
    for seconds in (SILENT_SECONDS, SHIPPER_SECONDS):
        shipment = _Shipment(number)
        with shipment.alone(seconds) as alone:
            if alone:
                name = shipment.name()
                if name and _free(outbox.writing(name)):
                    if trouble := shipment.go():
                        raise shipment.error(f"{trouble}. What {name} said waits in {outbox.path(number)}; run again.")
                    shipment.leave()
                return
        if seconds == SILENT_SECONDS:
            _warn(f"another process still uploads {outbox.path(number)} to {place()}; waiting for it")
    raise ServiceError(
        f"another process did not upload {outbox.path(number)} to {place()} in {SHIPPER_SECONDS:.0f} s. Run again."
    )


def follow(number: str, name: str) -> None:
    """Ships a record while it is written, and then what else of this checkout waits; see ``outbox.py``.

    A store that cannot be reached is tried again every RETRY_SECONDS as long as the work goes on, and once at its end.

    Args:
        number: the record's id.
        name: of the stage that the run is of, e.g. ``train@lenet5``.
    """
    shipment, writing = _Shipment(number), outbox.writing(name)
    with suppress(MlflowException, StageError, OSError):
        _connect()  # a second, which is over when there is something to ship
    trouble, again = "", 0.0
    with shipment.alone(-1):
        while True:
            ended = _free(writing)  # asked first: all that was said before is then read
            if ended or time.monotonic() >= again:
                found = shipment.go(watched=not ended)
                if found and not trouble:
                    _warn(f"{found}. What {name} says waits in {outbox.path(number)}")
                trouble, again = found or trouble, time.monotonic() + RETRY_SECONDS if found else 0.0
            if ended:
                break
            time.sleep(POLL_SECONDS)
        shipment.leave()
    with suppress(StageError):
        ship()


def ship() -> int:
    """Brings to MLflow what stages of this checkout said while it could not be reached; returns of how many runs.

    What is being written is left to the process that follows it. A record that cannot be brought stays; those behind it
    are brought if the store answers.

    Raises:
        ServiceError: it cannot be reached now either, or not for one of the records.
        ConfigurationError: it asks for a login, or for more rights.
    """
    shipped, problem = 0, None
    for file in sorted(outbox.FOLDER.glob("*.jsonl"), key=_modified):
        shipment = _Shipment(file.stem)
        with shipment.alone() as alone:
            if not alone or not (name := shipment.name()) or not _free(outbox.writing(name)):
                continue
            if trouble := shipment.go():
                problem = problem or shipment.error(
                    f"{trouble}. What {name} said waits in {file}; python -m stages ship uploads it."
                )
                if not _answers():
                    break
                continue
            shipped += shipment.leave()
    if problem:
        raise problem
    return shipped


def _modified(file: Path) -> float:
    """Returns when a record was last written; another process may just have brought and removed it."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _answers() -> bool:
    """Whether the store answers a question that changes nothing."""
    try:
        _connect().search_experiments(max_results=1)
    except (MlflowException, StageError, OSError):
        return False
    return True


def _warn(text: str) -> None:
    """Prints a warning, if anybody still listens: the stage that a shipper works for may have ended."""
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


class _Shipment:
    """Brings the lines of one record to MLflow, each at least once; a line that comes twice changes nothing there.

    How far it came lies beside the record: ``<id>.shipped``. A record with lines that nobody can bring, whatever the
    store answers, is set aside under the name ``<id>.jsonl.aside``.

    Attributes:
        error: what the reason is that ``go`` returned last.
    """

    NOTHING: ClassVar[dict[str, Any]] = {"bytes": 0, "run": None, "open": False, "later": False, "at": 0}

    def __init__(self, number: str) -> None:
        self._number, self._path = number, outbox.path(number)
        self._place = self._path.with_suffix(".shipped")
        self._state = dict(self.NOTHING)
        self._monitor: SystemMetricsMonitor | None = None
        self.error: type[StageError] = ServiceError

    @contextmanager
    def alone(self, seconds: float = 0.0) -> Iterator[bool]:
        """Says whether no other process ships this record, after waiting so long; none does until the context ends.

        Args:
            seconds: -1 waits until it is so.
        """
        lock = FileLock(outbox.FOLDER / f"{self._number}.shipping")
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            yield False
            return
        try:
            self._state = self._noted()
            yield True
        finally:
            if not self._path.exists():
                Path(lock.lock_file).unlink()
            lock.release()

    def name(self) -> str | None:
        """Returns what the record is of, e.g. ``train@lenet5``, once it has a line; sets a damaged one aside."""
        try:
            with self._path.open("rb") as file:
                first = file.readline()
            return json.loads(first)["name"] if first.endswith(b"\n") else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            self._set_aside(error)
            return None

    def go(self, watched: bool = False) -> str:
        """Brings what is new; returns why it could not, or "".

        Args:
            watched: the work goes on, so its use of the machine is measured.
        """
        try:
            try:
                self._go(watched)
            except MlflowException as error:
                if error.error_code != GONE or not self._state["bytes"]:
                    raise
                self._note(self.NOTHING)  # somebody removed the run for good, or the whole store
                self._go(watched)
        except MlflowException as error:
            if watched or error.error_code not in (GONE, REFUSED):
                return self._reason(_refusal(error) or error)
            self._set_aside(error)
        except (StageError, OSError) as error:
            return self._reason(error)
        except Exception as error:  # a line that is damaged, or of another version of convoy
            if watched:
                return f"{self._path} cannot be uploaded to {place()}: {type(error).__name__}: {_first_line(error)}"
            self._set_aside(error)
        return ""

    def _reason(self, error: Exception) -> str:
        self.error = ConfigurationError if isinstance(error, ConfigurationError) else ServiceError
        said = _first_line(error)
        return said if said.startswith(place()) else f"{place()} cannot be used now: {said}"

    def leave(self) -> bool:
        """Ends the run of a stage that died, and removes the record if all of it was brought; returns that."""
        if self._monitor is not None:
            self._monitor.finish()
        if not self._path.exists() or self._lines():
            return False
        if self._state["open"]:
            with suppress(MlflowException, StageError):
                client = _connect()
                client.set_terminated(self._state["run"], "KILLED", self._ended(client))
        for file in (self._place, self._path):  # a record without its place comes once more, which is harmless
            file.unlink(missing_ok=True)
        return True

    def _go(self, watched: bool) -> None:
        client = None
        for line in self._lines():
            client = client or _connect()
            try:
                said = json.loads(line)
            except ValueError:  # a kill or a full disk cut it off
                _warn(f"{self._path} has a line that was cut off, which is left out: {line[:60]!r}")
            else:
                self._bring(client, said, watched)
            self._note(self._state | {"bytes": self._state["bytes"] + len(line)})

    def _noted(self) -> dict[str, Any]:
        """Returns how far it came, as it was noted."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            found = self.NOTHING | json.loads(self._place.read_text(encoding="utf-8"))
            if found["run"] is not None:  # an older convoy noted lines that no run has
                return found
        return dict(self.NOTHING)

    def _note(self, state: dict[str, Any]) -> None:
        self._state = dict(state)
        partial = self._place.with_suffix(".partial")
        partial.write_text(json.dumps(self._state), encoding="utf-8")
        partial.replace(self._place)

    def _set_aside(self, error: Exception) -> None:
        names = (self._path.with_name(f"{self._path.name}{number or ''}.aside") for number in itertools.count())
        aside = next(name for name in names if not name.exists())  # of the same run there may be one
        self._place.unlink(missing_ok=True)
        self._path.replace(aside)
        _warn(
            f"{self._path} cannot be uploaded to {place()} ({type(error).__name__}: {_first_line(error)}). It is named "
            f"{aside} now and holds nothing up. To try once more, name it back and run python -m stages ship"
        )

    def _lines(self) -> list[bytes]:
        """Returns the whole lines that were not brought yet."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._state["bytes"])
            return [line for line in file if line.endswith(b"\n")]

    def _bring(self, client: MlflowClient, line: dict[str, Any], watched: bool) -> None:
        if line["what"] == "open":
            self._bring_open(client, line)
        else:
            _bring_or_warn(line["what"], lambda: getattr(self, f"_bring_{line['what']}")(client, line))
        self._state["at"] = line["at"]
        if watched and self._monitor is None and self._state["open"] and not self._state["later"]:
            self._monitor = SystemMetricsMonitor(self._state["run"], SAMPLE_SECONDS, resume_logging=True)
            self._monitor.start()

    def _bring_open(self, client: MlflowClient, line: dict[str, Any]) -> None:
        if self._state["open"] and line.get("anew"):  # whose stage died before it had anything to go on from
            client.set_terminated(self._state["run"], "KILLED", self._state["at"])
        if line.get("anew"):
            _rename_former(client, self._number, _experiment(client, line["dataset"]), line["at"])
        later = line.get("later", False)
        run_id = _recorded(client, self._number, line["name"], line["dataset"], line["tags"], line["at"])
        if not later:
            client.update_run(run_id, status="RUNNING")
            parameters = [Param(key, str(value)) for key, value in outbox.flat(line["parameters"]).items()]
            _bring_or_warn("parameters", lambda: client.log_batch(run_id, params=parameters))
            if line["patch"]:
                _bring_or_warn("the patch", lambda: client.log_text(run_id, line["patch"], PATCH))
        self._state |= {"run": run_id, "open": True, "later": later}  # last: all of it was brought, or none counts

    def _bring_metrics(self, client: MlflowClient, line: dict[str, Any]) -> None:
        found = [Metric(key, value, line["at"], line["step"] or 0) for key, value in line["numbers"].items()]
        client.log_batch(self._state["run"], metrics=found)

    def _bring_facts(self, client: MlflowClient, line: dict[str, Any]) -> None:
        numbers = {key: value for key, value in line["facts"].items() if isinstance(value, int | float)}
        others = {key: value for key, value in outbox.flat(line["facts"]).items() if key not in numbers}
        client.log_batch(
            self._state["run"],
            metrics=[Metric(key, float(value), line["at"], 0) for key, value in numbers.items()],
            tags=[RunTag(key, str(value)) for key, value in others.items() if key != "run_id"],
        )

    def _bring_data(self, client: MlflowClient, line: dict[str, Any]) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        with warnings.catch_warnings(action="ignore"):  # it knows two kinds of local folders, which are the same
            source = resolve_dataset_source(line["folder"])
        found = MetaDataset(source, line["name"], line["digest"][:DIGEST])._to_mlflow_entity()
        client.log_inputs(
            self._state["run"], [DatasetInput(found, [InputTag(MLFLOW_DATASET_CONTEXT, line["context"])])]
        )

    def _bring_files(self, client: MlflowClient, line: dict[str, Any]) -> None:
        if Path(line["folder"]).is_dir():  # a later run of the stage may be writing them anew, and says so then
            with _transferring():
                client.log_artifacts(self._state["run"], line["folder"], line["place"])

    def _bring_close(self, client: MlflowClient, line: dict[str, Any]) -> None:
        self._state["at"] = line["at"]
        client.set_terminated(self._state["run"], line["status"], self._ended(client))
        self._state["open"] = False

    def _ended(self, client: MlflowClient) -> int:
        """Returns when the run ended: what came later does not lengthen it."""
        ended = client.get_run(self._state["run"]).info.end_time if self._state["later"] else None
        return ended or self._state["at"]


def _bring_or_warn(what: str, bring: Callable[[], Any]) -> None:
    """Brings a part of a run; a store that refuses this part, today and later, does not hold up the rest."""
    try:
        bring()
    except MlflowException as error:
        if error.error_code != REFUSED:
            raise
        _warn(f"MLflow refused {what} of a run: {_first_line(error)}")


@contextmanager
def _transferring() -> Iterator[None]:
    """Gives a server time to store a file before it answers."""
    before = {variable: os.environ.get(variable) for variable in PATIENCE}
    note = threading.Timer(NOTE_SECONDS, _warn, [f"{place()} is slow with files; waiting up to {TRANSFER_SECONDS} s"])
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


def end_abandoned() -> None:
    """Ends as KILLED the open runs of processes of this machine that are no more.

    Where the store cannot be reached, that is said, and it is left to a later time.
    """
    try:
        ship()
        _end_abandoned(_connect())
    except (MlflowException, StageError) as error:
        _warn(f"{_first_line(error)}. Runs of processes that died stay open there")


def _end_abandoned(client: MlflowClient) -> None:
    for experiment in client.search_experiments():
        open_runs = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
        for one in open_runs:
            process = one.data.tags.get("process", "")
            host, _, number = process.partition(" ")
            if host == socket.gethostname() and process != outbox.process(int(number.split()[0])):
                client.set_terminated(one.info.run_id, "KILLED")


def log_metrics(numbers: dict[str, float]) -> None:
    """Adds numbers to the open run."""
    mlflow.log_metrics(numbers)


def log_file(path: Path) -> None:
    """Copies a file to the open run."""
    mlflow.log_artifact(str(path))


def log_files(folder: Path) -> None:
    """Copies the files of ``folder`` to the open run, under the name of the stage that wrote them."""
    with _transferring():
        mlflow.log_artifacts(str(folder), folder.parts[1])


def log_model(
    name: str,
    folder: Path,
    loader: str,
    code: list[Path],
    inputs: dict[str, str],
    outputs: dict[str, str],
    example: "pd.DataFrame",
    libraries: Iterable[str],
) -> str:
    """Stores a servable model with the open run and returns its address; flavor ``python_function``.

    Args:
        name: what the browser calls it.
        folder: what the model is loaded from; ``model.keras`` and ``input.json`` among it.
        loader: module whose ``_load_pyfunc(folder)`` gives the object that predicts.
        code: packages that it needs; stored with the model, and first on the path where that is served.
        inputs: column -> MLflow's name of its type; the model's signature.
        outputs: the same of what it answers; ``map`` is class -> probability.
        example: a row that it can be asked.
        libraries: that it needs, in the versions that are installed.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import DataType, Map

    def schema(columns: dict[str, str]) -> Schema:
        return Schema(
            [ColSpec(Map(DataType.double) if kind == "map" else kind, name) for name, kind in columns.items()]
        )

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)

    def save_model(validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pyfunc.save_model(**settings)

    with _transferring():
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=SimpleNamespace(__name__="mlflow.pyfunc", save_model=save_model),
            data_path=str(folder),
            loader_module=loader,
            code_paths=[str(package) for package in code],
            validate_serving_input=False,  # register does it, in a fresh process; here it would import Keras
            signature=ModelSignature(schema(inputs), schema(outputs)),
            input_example=example,
            pip_requirements=[f"{library}=={version(library)}" for library in libraries],
        )
    return info.model_uri


def explained(error: Exception) -> StageError | None:
    """Returns what an error that MLflow raised means to a user: its store is away, locked, or no store of MLflow's."""
    if isinstance(error, MlflowException):
        if error.error_code in (GONE, REFUSED):
            return ServiceError(f"{place()} refused: {_first_line(error)}. What was trained is kept.")
        return _refusal(error) or ServiceError(
            f"{place()} cannot be used now: {_first_line(error)}. What was trained is kept; run again when it can."
        )
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    theirs = Path(mlflow.__file__).parent
    if not uri().startswith("http") or not any(file.is_relative_to(theirs) for file in files):
        return None
    if any(
        files[-1].is_relative_to(CODE / package) for package in ("convoy", "stages", "flows")
    ):  # a defect in what MLflow calls
        return None
    if isinstance(error, OSError):  # as requests has it, of a proxy of files
        return ServiceError(f"{place()} cannot be used now: {_first_line(error)}. Run again when it can.")
    return _stranger(error)


def _refusal(error: MlflowException) -> ConfigurationError | None:
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
    return ConfigurationError(f"{place()} {what}. It said: {_first_line(error)}")


def _status() -> int | None:
    """Returns the HTTP status with which the server answers a question; None: it does not answer."""
    try:
        creds = MlflowClient()._tracking_client.store.get_host_creds()
        return http_request(creds, "/api/2.0/mlflow/experiments/get", "GET", params={"experiment_id": "0"}).status_code
    except (MlflowException, AttributeError):  # the second: what refused is a registry beside a local store
        return None


def _stranger(error: Exception | str) -> ServiceError:
    said = error if isinstance(error, str) else f"{type(error).__name__}: {_first_line(error)}"
    return ServiceError(
        f"{place()} does not answer as MLflow does ({said}). Is MLFLOW_TRACKING_URI its address, and not that of a "
        "login page or a proxy? What was trained is kept; run again."
    )


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Yields a copy of the files of a stored model in a folder that only this user can read; it goes with the context.

    What is checked has to be what is loaded, so both have to look at files that nobody else writes.

    Raises:
        IntegrityError: the store does not have them any more.
    """
    _connect()
    with tempfile.TemporaryDirectory(prefix="convoy-") as scratch:
        try:
            with _transferring():
                folder = Path(mlflow.artifacts.download_artifacts(address, dst_path=scratch))
            for compiled in [*folder.rglob("__pycache__")]:  # Python would run it in place of the code that was checked
                shutil.rmtree(compiled)
            empty = not any(folder.iterdir())
        except (MlflowException, OSError) as error:
            if not _are_gone(error):
                raise
            empty = True
        if empty:
            raise IntegrityError(f"the files of {address} are gone from {place()}")
        yield folder


def _are_gone(error: Exception) -> bool:
    """Whether this is how a store says that it does not have some files: a server, a folder, or its database."""
    if isinstance(error, MlflowException):
        return error.error_code == GONE or "No such artifact" in str(error)
    response = getattr(error, "response", None)
    return isinstance(error, FileNotFoundError) or (response is not None and response.status_code == 404)


def fingerprint(folder: Path) -> str:
    """Returns a SHA-256 of the paths and contents of all files of a stored model, as ``fetched`` yields them."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    lines = [f"{sha256(files[path])}  {path.as_posix()}" for path in sorted(files) if path != Path(LOADED)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def checked(registered: ModelVersion) -> Iterator[Path]:
    """Yields a private copy of the files of a version, which are those that were registered; older ones do not tell.

    Raises:
        IntegrityError: they are not; the message names another version that is whole.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(fetched(registered.source))
            problem = "" if _is_as_registered(registered, folder) else "are not those that were registered"
        except IntegrityError:
            problem = f"are gone from {place()}"
        if not problem:
            yield folder
            return
    name, number = registered.name, registered.version
    others = [one for one in _connect().search_model_versions(f"name = '{name}'") if STORED in one.tags]
    others.sort(key=lambda one: int(one.version), reverse=True)
    whole = next((one for one in others if str(one.version) != str(number) and is_whole(one)), None)
    raise IntegrityError(
        f"the files of {name} version {number}, {registered.source}, {problem}; they are not loaded. "
        + (
            f"Version {whole.version} is whole: python -m stages rollback {name} --to {whole.version} --reason ..."
            if whole
            else f"No other version is whole; python -m stages rebuild {name}@{number} trains it once more, where its "
            f"lineage.json is left, and dvc repro --force --single-item register@{name} stores the best model of today."
        )
    )


def is_whole(registered: ModelVersion) -> bool:
    """Whether the store has the files of a version as they were registered; of older ones, whether it has any."""
    try:
        with fetched(registered.source) as folder:
            return _is_as_registered(registered, folder)
    except IntegrityError:
        return False


def _is_as_registered(registered: ModelVersion, folder: Path) -> bool:
    known = registered.tags.get(STORED)
    return known is None or fingerprint(folder) == known


def is_ours(registered: ModelVersion) -> bool:
    """Whether ``register`` made a version; an alias can be given to those of other tools too."""
    return all(tag in registered.tags for tag in OURS)


def load_model(registered: ModelVersion) -> tuple["keras.Model", dict[str, Any] | None]:
    """Loads the network of a version, and what it takes; None: it was stored before that went with it.

    Raises:
        IntegrityError: see ``checked``.
        InputRefusedError: see ``networks.check``.
    """
    with checked(registered) as folder:
        [network] = folder.rglob("model.keras")
        takes = next(folder.rglob(TAKES), None)
        return (
            safe_load.load(network),
            None if takes is None else json.loads(takes.read_text(encoding="utf-8")),
        )


def version_with(dataset: str, tag: str, value: str) -> ModelVersion | None:
    """Returns the newest version of the registered model ``dataset`` that has a tag of the given value."""
    found = _connect().search_model_versions(f"name = '{dataset}' and tags.`{tag}` = '{value}'")
    return max(found, key=lambda one: int(one.version), default=None)


def add_version(dataset: str, address: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    """Registers the model stored at ``address`` as a new version of ``dataset``."""
    client = _connect()
    try:
        client.create_registered_model(dataset)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(dataset, address, run_id, tags=tags, model_id=address.rsplit("/", 1)[-1])


def describe_version(registered: ModelVersion, tags: dict[str, str]) -> None:
    """Renews tags of a registered version."""
    client = _connect()
    for key, value in tags.items():
        client.set_model_version_tag(registered.name, registered.version, key, value)


def describe(dataset: str, about: str, registered: ModelVersion, text: str) -> None:
    """Renews what the registry says about a data set, and in Markdown about one version."""
    client = _connect()
    client.update_registered_model(dataset, about)
    client.update_model_version(registered.name, registered.version, text)


def needed_champion(dataset: str) -> ModelVersion:
    """Returns the champion of ``dataset``, which ``register`` made.

    Raises:
        ConfigurationError: there is none, or another tool made it.
    """
    found = champion(dataset)
    if found is None:
        raise ConfigurationError(f"{place()} has no champion of {dataset!r}: register one first (make repro).")
    if not is_ours(found):
        raise ConfigurationError(foreign(found))
    return found


def foreign(registered: ModelVersion) -> str:
    """Returns why a version of another tool cannot be used, and the way out."""
    name = registered.name
    ours = [one for one in _connect().search_model_versions(f"name = '{name}'") if is_ours(one)]
    newest = max(ours, key=lambda one: int(one.version), default=None)
    return (
        f"version {registered.version} of {name} was not registered by convoy, so it is not known what it takes. "
        + (
            f"To make version {newest.version} ({newest.tags['model']}) the champion: python -m stages rollback {name} "
            f"--to {newest.version} --reason ..."
            if newest
            else f"No version of {name} was: take the alias off, and register one (make repro)."
        )
    )


def champion(dataset: str) -> ModelVersion | None:
    """Returns the version of ``dataset`` that has the alias ``champion``."""
    try:
        return _connect().get_model_version_by_alias(dataset, CHAMPION)
    except MlflowException as error:
        # The second is what an alias that nobody has is answered with; anything else is no "there is none".
        missing = error.error_code == REFUSED and "alias" in str(error)
        if missing or error.error_code == GONE:
            return None
        raise


def find_version(dataset: str, which: str) -> ModelVersion:
    """Returns a version of ``dataset`` by its number or an alias.

    Raises:
        ConfigurationError: there is none; the message names those that exist.
    """
    client = _connect()
    versions = client.search_model_versions(f"name = '{dataset}'")
    aliases = client.get_registered_model(dataset).aliases if versions else {}
    number = str(aliases.get(which, which))
    for one in versions:
        if str(one.version) == number:
            return client.get_model_version(dataset, number)  # which, unlike the list, has its aliases
    known = sorted((int(one.version) for one in versions), reverse=True)
    raise ConfigurationError(
        f"{place()} has no {dataset}@{which}. Versions of {dataset}: {', '.join(map(str, known)) or 'none'}"
        f"{'; aliases: ' + ', '.join(f'{name} ({number})' for name, number in aliases.items()) if aliases else ''}."
    )


def text_of(registered: ModelVersion, name: str) -> str | None:
    """Returns a text file that lies beside the model of a version, or None.

    Raises:
        IntegrityError: the files of the version are gone.
    """
    with fetched(registered.source) as folder:
        return next((file.read_text(encoding="utf-8") for file in folder.rglob(name)), None)


def run_of(registered: ModelVersion) -> dict[str, Any]:
    """Returns ``run_id``, ``tags`` and ``patch`` (what was not committed) of the run that trained a version."""
    client = _connect()
    run = client.get_run(registered.run_id)
    patch = ""
    if any(one.path == PATCH for one in client.list_artifacts(registered.run_id)):
        patch = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{PATCH}")
    return {"run_id": registered.run_id, "tags": run.data.tags, "patch": patch}


def forget_tag(registered: ModelVersion, key: str) -> None:
    """Takes a tag off a registered version, if it has it."""
    if key in registered.tags:
        _connect().delete_model_version_tag(registered.name, registered.version, key)


def unneeded(datasets: Iterable[str], last: int, kept_runs: Container[str]) -> tuple[list[ModelVersion], Unneeded]:
    """Returns the versions of the registry that stay, and what may go.

    Those that stay are sorted, of each data set the newest first: behind its ``last`` are those that an alias keeps.
    All versions stay of registered models that are not in ``datasets``: another checkout may have them in the same
    store, or this one before its data set was taken out of params.yaml. Versions of other tools are not returned.
    Nothing goes that a version of another name was copied from.

    Args:
        datasets: registered models whose versions may go; they are also experiments.
        last: versions of a data set, and runs and searches of a model, that stay beside versions with an alias.
        kept_runs: ids of records of further ones.
    """
    client, stay, go = _connect(), [], Unneeded([], [], [])
    datasets, every = list(datasets), mlflow.search_model_versions()
    ours = [one for one in every if "model_sha256" in one.tags]
    for dataset in dict.fromkeys([*datasets, *sorted(one.name for one in ours)]):
        found = [one for one in ours if one.name == dataset]
        found.sort(key=lambda one: int(one.version), reverse=True)
        aliases = client.get_registered_model(dataset).aliases if found else {}
        named = {str(number) for number in aliases.values()}
        for place, one in enumerate(found):
            if str(one.version) in named:
                stay.append(client.get_model_version(dataset, one.version))  # which, unlike the list, has its aliases
            else:
                (stay if place < last or dataset not in datasets else go.versions).append(one)
    gone = {(one.name, one.version) for one in go.versions}
    kept = [one for one in every if (one.name, one.version) not in gone]
    needed = {one.run_id for one in kept}
    experiments = [one.experiment_id for name in datasets if (one := client.get_experiment_by_name(name)) is not None]
    for experiment in experiments:
        seen: Counter[str] = Counter()
        for run in _newest_first(client, experiment, "train"):
            model, number = run.data.tags.get("model"), run.info.run_id
            seen[model] += 1
            stays = seen[model] <= last or number in needed or run.data.tags.get(RECORD) in kept_runs
            if not stays and run.info.status != "RUNNING":
                go.runs.append(number)
        go.runs.extend(_old_searches(client, experiment, last))
    going = {_place(client, one) for one in go.versions}
    stored = mlflow.search_logged_models(experiments, output_format="list") if experiments else []
    unused = [one for one in stored if one.artifact_location in going or _lost_its_run(client, one, go.runs)]
    used = {_place(client, one) for one in kept} if unused else ()
    go.models.extend(one.model_id for one in unused if one.artifact_location not in used)
    return stay, go


def _place(client: MlflowClient, one: ModelVersion) -> str:
    """Returns where the files of a version lie, also of one that was copied from another."""
    return client.get_model_version_download_uri(one.name, one.version).rstrip("/")


def _lost_its_run(client: MlflowClient, model: LoggedModel, going: Container[str]) -> bool:
    """Returns whether the run that stored a model goes, or went for good without it, as an older ``clean`` had it."""
    run = model.source_run_id
    if run is None or run in going:
        return run is not None
    try:
        client.get_run(run)
    except MlflowException as error:
        if error.error_code != GONE:
            raise
        return True
    return False


def _newest_first(client: MlflowClient, experiment: str, stage: str) -> list[Run]:
    order = ["attributes.start_time DESC"]
    return client.search_runs([experiment], f"tags.stage = '{stage}'", max_results=50_000, order_by=order)


def _old_searches(client: MlflowClient, experiment: str, last: int) -> Iterator[str]:
    """Yields the runs of all but the ``last`` searches of each model, and of their trials; none of one that goes on."""
    found = _newest_first(client, experiment, "tune")
    trials, seen = defaultdict(list), Counter()
    for run in found:
        if parent := run.data.tags.get(MLFLOW_PARENT_RUN_ID):
            trials[parent].append(run.info.run_id)
    for run in found:
        if MLFLOW_PARENT_RUN_ID not in run.data.tags:
            model = run.data.tags.get("model")
            seen[model] += 1
            if seen[model] > last and run.info.status != "RUNNING":
                yield from [run.info.run_id, *trials[run.info.run_id]]


def remove(go: Unneeded) -> None:
    """Removes versions, runs and stored models; for good only from a store of this checkout.

    A server keeps deleted runs until ``mlflow gc`` is called there. Of what somebody deleted in the browser
    nothing else is removed for good but models without a run, and experiments of other names.
    """
    client, runs, local = _connect(), list(go.runs), uri() == _local()
    if local and go.models and not runs:  # mlflow gc would take an empty list for all runs that were ever deleted
        runs.append(client.create_run(client.get_logged_model(go.models[0]).experiment_id).info.run_id)
    for number in go.models:  # first: without its version nobody would know any more that it may go
        client.delete_logged_model(number)
    for one in go.versions:
        client.delete_model_version(one.name, one.version)
    for number in runs:
        client.delete_run(number)
    if local and runs:
        for name in {one.name for one in go.versions}:
            _experiment(client, name)  # which brings a deleted one back
        for first in range(0, len(runs), 1000):  # all at once would be too long an argument
            some = ",".join(runs[first : first + 1000])
            done = subprocess.run(
                [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri(), "--run-ids", some],
                env=os.environ | {"MLFLOW_TRACKING_URI": uri()},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ServiceError(f"mlflow gc ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")


def promote(registered: ModelVersion) -> None:
    """Gives a version the alias ``champion``; whoever had it loses it."""
    _connect().set_registered_model_alias(registered.name, CHAMPION, registered.version)


def _connect() -> MlflowClient:
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
        if address == _local():
            database = Path.cwd() / "mlflow.db"
            with FileLock(f"{database}.lock"):
                if not database.exists():
                    partial = database.with_name("mlflow.db.partial")
                    partial.unlink(missing_ok=True)
                    MlflowClient(f"sqlite:///{partial}").search_experiments()
                    partial.rename(database)
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
            _warn(f"{place()} has not answered yet; waiting up to {ANSWER_SECONDS:.0f} s")
        _named.add(place())
        asking.join(ANSWER_SECONDS - SILENT_SECONDS)
    if asking.is_alive():
        raise MlflowException(f"no whole answer within {ANSWER_SECONDS:.0f} s")
    for error in raised:
        if isinstance(error, MlflowException):
            for sign, said in (("valid JSON format", "its answer is no JSON"), ("error code 404", "404")):
                if sign in str(error):
                    raise _stranger(said) from error
            raise _refusal(error) or error
        raise error if isinstance(error, StageError) else _stranger(error)


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
        raise _stranger("it knows no experiments")


def _recorded(
    client: MlflowClient, number: str, name: str, dataset: str, tags: dict[str, str], at: int | None = None
) -> str:
    """Returns MLflow's id of the run of a record, which is created if the store does not have it."""
    experiment = _experiment(client, dataset)
    found = _with_record(client, number, experiment)
    if found is None:
        run_id = client.create_run(experiment, at, tags | {RECORD: number}, name).info.run_id
        if not run_id:  # nothing that is sent to no run would be missed
            raise _stranger("it began a run without an id")
        if at is None:
            client.set_terminated(run_id)
        return run_id
    if found.info.lifecycle_stage == "deleted":  # in the browser, say
        client.restore_run(found.info.run_id)
    return found.info.run_id


def _rename_former(client: MlflowClient, number: str, experiment: str, at: int) -> None:
    """Has a run that began before ``at`` no longer count as that of the record: the same was trained once more."""
    found = _with_record(client, number, experiment)
    if found is not None and found.info.start_time != at:
        client.set_tag(found.info.run_id, RECORD, f"{number}, before")


def _with_record(client: MlflowClient, number: str, experiment: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.`{RECORD}` = '{number}'", ViewType.ALL, max_results=1)
    return next(iter(found), None)


def _free(lock: FileLock) -> bool:
    """Whether nobody holds a lock now."""
    try:
        with lock.acquire(blocking=False):
            return True
    except Timeout:
        return False


def _first_line(error: Exception) -> str:
    """Returns the line of a message that says why: the database's own, if there is one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = next((line for line in lines if re.match(r"\(\w+\.\w*Error\)", line)), lines[0])[:500]
    return mask_in(first, uri())


def _known(client: MlflowClient, run_id: str | None) -> str | None:
    """Returns the id of a run if the store has it, and it was not deleted."""
    try:
        return run_id if run_id and client.get_run(run_id).info.lifecycle_stage == "active" else None
    except MlflowException as error:
        if error.error_code != GONE:
            raise
        return None


def _local() -> str:
    # Compared with, rather than "is the variable set": MLflow sets MLFLOW_TRACKING_URI itself.
    return f"sqlite:///{Path.cwd()}/mlflow.db"


def _experiment(client: MlflowClient, dataset: str) -> str:
    """Returns the id of the experiment of a data set, created on first use."""
    # An absolute place: MLflow's own default depends on the folder in which a process happens to start.
    folder = Path.cwd() / relocation.ARTIFACTS / dataset if uri() == _local() else None
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
