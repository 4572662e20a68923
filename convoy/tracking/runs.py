"""Begins, continues, nests and ends runs of MLflow."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from convoy.errors import StageError
from convoy.secrets import redacted_values
from convoy.tracking import outbox
from convoy.tracking.shipping import PATCH, SAMPLE_SECONDS, recorded, ship, upload_record
from convoy.tracking.store import GONE, connect, experiment_id, first_line, transferring, warn


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
    client = connect()
    tags, patch = outbox.tags(name, dataset, inputs)
    mlflow.set_system_metrics_sampling_interval(SAMPLE_SECONDS)
    experiment = experiment_id(client, dataset)
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
    client = connect()
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
        """Sets how the run will end: a word for the tag ``state``, and MLflow's status."""
        self._client.set_tag(self._run_id, "state", state)
        self.status = status


@contextmanager
def reopened(facts: dict[str, Any]) -> Iterator[str]:
    """Continues the run of a training, given its ``run.json``; yields MLflow's id of it. Its end stays the training's.

    The lines of the training that are not in MLflow yet are uploaded first; see ``outbox.reopened`` for one that this
    store does not know. Records of other trainings keep nobody waiting.

    Raises:
        ServiceError: the store cannot be reached, or another process does not get done with the record.
    """
    number = outbox.record_id(facts)
    upload_record(number)
    try:
        ship()
    except StageError as error:
        warn(str(error))
    client = connect()
    tags = {"stage": "train", "model": facts["model"], "dataset": facts["dataset"]}
    run_id = recorded(client, number, f"train@{facts['model']}", facts["dataset"], tags)
    ended, status = client.get_run(run_id).info.end_time, "FAILED"
    try:
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            yield run_id
        status = "FINISHED"
    finally:
        if ended is not None:  # the duration that the browser shows is without the hours until now
            client.set_terminated(run_id, status, end_time=ended)


def end_abandoned() -> None:
    """Ends as KILLED the open runs of dead processes of this machine.

    If the store cannot be reached, convoy warns, and a later call ends them.
    """
    try:
        ship()
        _end_abandoned(connect())
    except (MlflowException, StageError) as error:
        warn(f"{first_line(error)}. Runs of processes that died stay open there")


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
    with transferring():
        mlflow.log_artifacts(str(folder), folder.parts[1])


def _known(client: MlflowClient, run_id: str | None) -> str | None:
    """Returns the id of a run if the store has it, and it was not deleted."""
    try:
        return run_id if run_id and client.get_run(run_id).info.lifecycle_stage == "active" else None
    except MlflowException as error:
        if error.error_code != GONE:
            raise
        return None
