"""Uploads the records of stages to MLflow, while they run or later."""

import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from convoy import files
from convoy.errors import ConfigurationError, ServiceError, StageError
from convoy.tracking import outbox
from convoy.tracking.store import (
    GONE,
    REFUSED,
    SILENT_SECONDS,
    connect,
    experiment_id,
    first_line,
    place,
    refusal,
    stranger,
    transferring,
    warn,
)

PATCH = "git.patch"  # of a run: what differed from its commit
DIGEST = 36  # characters of a data set's digest that MLflow takes
SAMPLE_SECONDS = 2  # between two readings of CPU, memory and GPU
RECORD = "record"  # tag of a run: the id of what it was shipped from; see record.py
POLL_SECONDS = 0.2  # between two looks at a record that is being written
RETRY_SECONDS = 15.0  # between two tries of a store that could not be reached
SHIPPER_SECONDS = 300.0  # of waiting for another process that uploads the same record


def upload_record(number: str) -> None:
    """Uploads a record, or waits until the process that follows it has.

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
            warn(f"another process still uploads {outbox.path(number)} to {place()}; waiting for it")
    raise ServiceError(
        f"another process did not upload {outbox.path(number)} to {place()} in {SHIPPER_SECONDS:.0f} s. Run again."
    )


def follow(number: str, name: str) -> None:
    """Ships a record while it is written, and then the other waiting records of this checkout; see ``outbox.py``.

    An unreachable store is tried again every RETRY_SECONDS while the work goes on, and once at its end.

    Args:
        number: the record's id.
        name: of the stage that the run is of, e.g. ``train@lenet5``.
    """
    shipment, writing = _Shipment(number), outbox.writing(name)
    with suppress(MlflowException, StageError, OSError):
        connect()  # a second, which is over when there is something to ship
    trouble, again = "", 0.0
    with shipment.alone(-1):
        while True:
            ended = _free(writing)  # asked first: all that was said before is then read
            if ended or time.monotonic() >= again:
                found = shipment.go(watched=not ended)
                if found and not trouble:
                    warn(f"{found}. What {name} says waits in {outbox.path(number)}")
                trouble, again = found or trouble, time.monotonic() + RETRY_SECONDS if found else 0.0
            if ended:
                break
            time.sleep(POLL_SECONDS)
        shipment.leave()
    with suppress(StageError):
        ship()


def ship() -> int:
    """Uploads the records that wait in this checkout to MLflow; returns the number of runs.

    A record that is being written is left to the process that follows it. A record that cannot be uploaded stays;
    those behind it are uploaded if the store answers.

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
                    f"{trouble}. What {name} said waits in {file}; convoy ship uploads it."
                )
                if not _answers():
                    break
                continue
            shipped += shipment.leave()
    if problem:
        raise problem
    return shipped


def _modified(file: Path) -> float:
    """Returns when a record was last written; another process may just have uploaded and removed it."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _answers() -> bool:
    """Whether the store answers a question that changes nothing."""
    try:
        connect().search_experiments(max_results=1)
    except (MlflowException, StageError, OSError):
        return False
    return True


class _Shipment:
    """Uploads the lines of one record to MLflow, each at least once; a line that comes twice changes nothing there.

    Its progress lies beside the record: ``<id>.shipped``. A record with lines that nobody can upload, whatever the
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
        """Locks the record until the context ends; yields False if another process still ships it after ``seconds``.

        Args:
            seconds: of waiting for the other process; -1 waits until it ends.
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
        """Returns the name of the record's run, e.g. ``train@lenet5``, once it has a line; sets a damaged one aside."""
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
        """Uploads the new lines; returns why it could not, or "".

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
                return self._reason(refusal(error) or error)
            self._set_aside(error)
        except (StageError, OSError) as error:
            return self._reason(error)
        except Exception as error:  # a line that is damaged, or of another version of convoy
            if watched:
                return f"{self._path} cannot be uploaded to {place()}: {type(error).__name__}: {first_line(error)}"
            self._set_aside(error)
        return ""

    def _reason(self, error: Exception) -> str:
        self.error = ConfigurationError if isinstance(error, ConfigurationError) else ServiceError
        said = first_line(error)
        return said if said.startswith(place()) else f"{place()} cannot be used now: {said}"

    def leave(self) -> bool:
        """Ends the run of a stage that died, and removes the record if all of it was uploaded; returns that."""
        if self._monitor is not None:
            self._monitor.finish()
        if not self._path.exists() or self._lines():
            return False
        if self._state["open"]:
            with suppress(MlflowException, StageError):
                client = connect()
                client.set_terminated(self._state["run"], "KILLED", self._ended(client))
        for file in (self._place, self._path):  # a record without its place comes once more, which is harmless
            file.unlink(missing_ok=True)
        return True

    def _go(self, watched: bool) -> None:
        client = None
        for line in self._lines():
            client = client or connect()
            try:
                said = json.loads(line)
            except ValueError:  # a kill or a full disk cut it off
                warn(f"{self._path} has a line that was cut off, which is left out: {line[:60]!r}")
            else:
                self._upload(client, said, watched)
            self._note(self._state | {"bytes": self._state["bytes"] + len(line)})

    def _noted(self) -> dict[str, Any]:
        """Returns the stored progress."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            found = self.NOTHING | json.loads(self._place.read_text(encoding="utf-8"))
            if found["run"] is not None:  # an older convoy noted lines that no run has
                return found
        return dict(self.NOTHING)

    def _note(self, state: dict[str, Any]) -> None:
        self._state = dict(state)
        files.write_json(self._place, self._state)

    def _set_aside(self, error: Exception) -> None:
        names = (self._path.with_name(f"{self._path.name}{number or ''}.aside") for number in itertools.count())
        aside = next(name for name in names if not name.exists())  # of the same run there may be one
        self._place.unlink(missing_ok=True)
        self._path.replace(aside)
        warn(
            f"{self._path} cannot be uploaded to {place()} ({type(error).__name__}: {first_line(error)}). It is named "
            f"{aside} now and holds nothing up. To try once more, name it back and run convoy ship"
        )

    def _lines(self) -> list[bytes]:
        """Returns the whole lines that were not uploaded yet."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._state["bytes"])
            return [line for line in file if line.endswith(b"\n")]

    def _upload(self, client: MlflowClient, line: dict[str, Any], watched: bool) -> None:
        if line["what"] == "open":
            self._upload_open(client, line)
        else:
            _upload_or_warn(line["what"], lambda: getattr(self, f"_upload_{line['what']}")(client, line))
        self._state["at"] = line["at"]
        if watched and self._monitor is None and self._state["open"] and not self._state["later"]:
            self._monitor = SystemMetricsMonitor(self._state["run"], SAMPLE_SECONDS, resume_logging=True)
            self._monitor.start()

    def _upload_open(self, client: MlflowClient, line: dict[str, Any]) -> None:
        if self._state["open"] and line.get("anew"):  # its stage died with nothing to resume from
            client.set_terminated(self._state["run"], "KILLED", self._state["at"])
        if line.get("anew"):
            _rename_former(client, self._number, experiment_id(client, line["dataset"]), line["at"])
        later = line.get("later", False)
        run_id = recorded(client, self._number, line["name"], line["dataset"], line["tags"], line["at"])
        if not later:
            client.update_run(run_id, status="RUNNING")
            parameters = [Param(key, str(value)) for key, value in outbox.flat(line["parameters"]).items()]
            _upload_or_warn("parameters", lambda: client.log_batch(run_id, params=parameters))
            if line["patch"]:
                _upload_or_warn("the patch", lambda: client.log_text(run_id, line["patch"], PATCH))
        outbox.keep_run_id(line["dataset"], line["name"].partition("@")[2], self._number, run_id)
        self._state |= {"run": run_id, "open": True, "later": later}  # last: all of it was uploaded, or none counts

    def _upload_metrics(self, client: MlflowClient, line: dict[str, Any]) -> None:
        found = [Metric(key, value, line["at"], line["step"] or 0) for key, value in line["numbers"].items()]
        client.log_batch(self._state["run"], metrics=found)

    def _upload_facts(self, client: MlflowClient, line: dict[str, Any]) -> None:
        numbers = {key: value for key, value in line["facts"].items() if isinstance(value, int | float)}
        others = {key: value for key, value in outbox.flat(line["facts"]).items() if key not in numbers}
        client.log_batch(
            self._state["run"],
            metrics=[Metric(key, float(value), line["at"], 0) for key, value in numbers.items()],
            tags=[RunTag(key, str(value)) for key, value in others.items() if key not in ("record_id", "run_id")],
        )

    def _upload_data(self, client: MlflowClient, line: dict[str, Any]) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        with warnings.catch_warnings(action="ignore"):  # it knows two kinds of local folders, which are the same
            source = resolve_dataset_source(line["folder"])
        found = MetaDataset(source, line["name"], line["digest"][:DIGEST])._to_mlflow_entity()
        client.log_inputs(
            self._state["run"], [DatasetInput(found, [InputTag(MLFLOW_DATASET_CONTEXT, line["context"])])]
        )

    def _upload_files(self, client: MlflowClient, line: dict[str, Any]) -> None:
        if Path(line["folder"]).is_dir():  # a later run of the stage may be rewriting them, and records that itself
            with transferring():
                client.log_artifacts(self._state["run"], line["folder"], line["place"])

    def _upload_close(self, client: MlflowClient, line: dict[str, Any]) -> None:
        self._state["at"] = line["at"]
        client.set_terminated(self._state["run"], line["status"], self._ended(client))
        self._state["open"] = False

    def _ended(self, client: MlflowClient) -> int:
        """Returns when the run ended; later lines do not lengthen it."""
        ended = client.get_run(self._state["run"]).info.end_time if self._state["later"] else None
        return ended or self._state["at"]


def _upload_or_warn(what: str, upload: Callable[[], Any]) -> None:
    """Uploads a part of a run; a store that refuses this part, today and later, does not hold up the rest."""
    try:
        upload()
    except MlflowException as error:
        if error.error_code != REFUSED:
            raise
        warn(f"MLflow refused {what} of a run: {first_line(error)}")


def recorded(
    client: MlflowClient, number: str, name: str, dataset: str, tags: dict[str, str], at: int | None = None
) -> str:
    """Returns MLflow's id of the run of a record, which is created if the store does not have it."""
    experiment = experiment_id(client, dataset)
    found = _with_record(client, number, experiment)
    if found is None:
        run_id = client.create_run(experiment, at, tags | {RECORD: number}, name).info.run_id
        if not run_id:  # nothing that is sent to no run would be missed
            raise stranger("it began a run without an id")
        if at is None:
            client.set_terminated(run_id)
        return run_id
    if found.info.lifecycle_stage == "deleted":  # in the browser, say
        client.restore_run(found.info.run_id)
    return found.info.run_id


def _rename_former(client: MlflowClient, number: str, experiment: str, at: int) -> None:
    """Detaches a run that began before ``at`` from the record, because the same entry was trained again."""
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
