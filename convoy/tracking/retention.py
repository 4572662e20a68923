"""What may go from the store, and its removal."""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from convoy.errors import ServiceError
from convoy.tracking.shipping import RECORD
from convoy.tracking.store import GONE, connect, experiment_id, local_uri, uri


class Unneeded(NamedTuple):
    """What ``remove`` may remove: registered versions, ids of runs, and of stored models."""

    versions: list[ModelVersion]
    runs: list[str]
    models: list[str]


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
    client, stay, go = connect(), [], Unneeded([], [], [])
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
    client, runs, local = connect(), list(go.runs), uri() == local_uri()
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
            experiment_id(client, name)  # which restores a deleted one
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
