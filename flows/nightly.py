"""The night's work: pulls data, runs the pipeline, pushes the results, and reports new champions.

``convoy schedule`` keeps one machine to a schedule; ``prefect.yaml`` deploys the same to a work pool.
"""

import os
import sys
from collections.abc import Sequence

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.settings import temporary_settings
from prefect.states import State

from convoy import params
from convoy.errors import ServiceError, StageError
from convoy.machine import guard
from convoy.repo import graph, lockfile
from convoy.secrets import redacted
from convoy.tracking import registry
from flows import session
from flows.pipeline import pipeline

WEBHOOK = "CONVOY_WEBHOOK"  # environment variable: address that receives new champions; it may hold a secret
# After an outage every missed run starts at once: one runs, and Prefect cancels the others.
ALONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
RETRIES = {"retries": 2, "retry_delay_seconds": [60.0, 600.0], "cache_policy": NO_CACHE, "persist_result": False}


class CommandFailedError(StageError):
    """A command that ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, last: str) -> None:
        super().__init__(f"{' '.join(command)}: {last}")
        self.status = status


def _may_pass(_task: object, _run: object, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandFailedError) and error.status == ServiceError.status


@task(name="bring data in", task_run_name="bring data in", retry_condition_fn=_may_pass, **RETRIES)
def pull_data() -> None:
    """Updates the data of ``dvc import`` and ``import-url`` from their sources, and pulls from the remote."""
    for file in graph.imports():
        _run("dvc", "update", file)
    if graph.remote() is not None:
        _run("flows", "pull")


@task(name="send results", task_run_name="send results", retry_condition_fn=_may_pass, **RETRIES)
def push_results() -> None:
    """Pushes data and models to the remote."""
    if graph.remote() is not None:
        _run("flows", "push")


@flow(name="nightly", persist_result=False)
def nightly(targets: list[str] | None = None, slots: int | None = None, cluster: str | None = None) -> State:
    """Pulls data, runs the pipeline, pushes the results, and reports new champions.

    Args:
        targets: as in ``pipeline``.
        slots: likewise.
        cluster: likewise.

    Returns:
        The pipeline's state; results that were finished before a failure are pushed all the same.
    """
    lockfile.mend()  # first: a lock file that DVC refuses stops the pull too
    datasets = list(params.load()["register"])
    before = {dataset: _describe_champion(dataset) for dataset in datasets}
    pull_data()
    state = pipeline(targets, slots, cluster=cluster, return_state=True)
    push_results()
    for dataset in datasets:
        if (now := _describe_champion(dataset)) != before[dataset]:
            report(f"{dataset}: champion is now {now or 'nobody'}, before {before[dataset] or 'nobody'}")
    return state


def report(text: str) -> None:
    """Writes a text to Prefect's log, and posts it to the address in ``CONVOY_WEBHOOK``, as {"text": ...}."""
    log = get_run_logger()
    log.info("%s", text)
    if address := os.environ.get(WEBHOOK):
        try:
            httpx.post(address, json={"text": text}, timeout=30).raise_for_status()
        except httpx.HTTPError as error:  # its message would hold the address
            log.warning("the webhook did not take it: %s", type(error).__name__)


def serve(cron: str, targets: list[str], slots: int | None, cluster: str | None) -> None:
    """Runs ``nightly`` in this checkout at the times of ``cron``, until it is ended; the server keeps the schedule."""
    with temporary_settings(session.pages()):
        nightly.serve(
            name="nightly",
            cron=cron,
            parameters={"targets": targets or None, "slots": slots, "cluster": cluster},
            global_limit=ALONE,
            pause_on_shutdown=False,  # the next start goes on with it
        )


def _describe_champion(dataset: str) -> str | None:
    version = registry.champion(dataset)
    return None if version is None else f"version {version.version} ({version.tags.get('model', 'unknown')})"


def _run(module: str, *words: str) -> None:
    log, last = get_run_logger(), ""
    process = guard.start([sys.executable, "-m", module, *words], env=guard.environment())
    try:
        for line in map(redacted, process.stdout):
            last = line.strip() or last
            log.info("%s", line.rstrip("\n"))
    finally:
        guard.end(process)
    if status := process.wait():
        raise CommandFailedError(("convoy" if module == "flows" else module, *words), status, last)
