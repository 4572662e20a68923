"""The night's work: bring data in, run the pipeline, send the results, say who is champion now.

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

WEBHOOK = "CONVOY_WEBHOOK"  # environment variable: an address that is told of a new champion; it may hold a secret
# After an outage every missed run starts at once: one may, and the others are cancelled.
ALONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
TIMES = {"retries": 2, "retry_delay_seconds": [60.0, 600.0], "cache_policy": NO_CACHE, "persist_result": False}


class CommandFailedError(StageError):
    """A command that ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, last: str) -> None:
        super().__init__(f"{' '.join(command)}: {last}")
        self.status = status


def _may_pass(_task: object, _run: object, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, CommandFailedError) and error.status == ServiceError.status


@task(name="bring data in", task_run_name="bring data in", retry_condition_fn=_may_pass, **TIMES)
def bring_in() -> None:
    """Takes what changed at the sources of ``dvc import`` and ``import-url``, and what the remote has."""
    for file in graph.imports():
        _run("dvc", "update", file)
    if graph.remote() is not None:
        _run("flows", "pull")


@task(name="send results", task_run_name="send results", retry_condition_fn=_may_pass, **TIMES)
def send() -> None:
    """Sends data and models to the remote."""
    if graph.remote() is not None:
        _run("flows", "push")


@flow(name="nightly", persist_result=False)
def nightly(targets: list[str] | None = None, slots: int | None = None, cluster: str | None = None) -> State:
    """Brings data in, runs the pipeline, sends results, and tells of new champions.

    Args:
        targets: as of ``pipeline``.
        slots: likewise.
        cluster: likewise.

    Returns:
        How the pipeline ended; what it finished before something failed is sent all the same.
    """
    lockfile.mend()  # first: what DVC refuses stops the pull too
    datasets = list(params.load()["register"])
    before = {dataset: _champion(dataset) for dataset in datasets}
    bring_in()
    state = pipeline(targets, slots, cluster=cluster, return_state=True)
    send()
    for dataset in datasets:
        if (now := _champion(dataset)) != before[dataset]:
            tell(f"{dataset}: champion is now {now or 'nobody'}, before {before[dataset] or 'nobody'}")
    return state


def tell(text: str) -> None:
    """Says something in Prefect's log, and to the address in ``CONVOY_WEBHOOK``, as {"text": ...}."""
    log = get_run_logger()
    log.info("%s", text)
    if address := os.environ.get(WEBHOOK):
        try:
            httpx.post(address, json={"text": text}, timeout=30).raise_for_status()
        except httpx.HTTPError as error:  # its message would hold the address
            log.warning("the webhook did not take it: %s", type(error).__name__)


def serve(cron: str, targets: list[str], slots: int | None, cluster: str | None) -> None:
    """Runs ``nightly`` in this checkout whenever ``cron`` says so, until it is ended; the server keeps the schedule."""
    with temporary_settings(session.pages()):
        nightly.serve(
            name="nightly",
            cron=cron,
            parameters={"targets": targets or None, "slots": slots, "cluster": cluster},
            global_limit=ALONE,
            pause_on_shutdown=False,  # the next start goes on with it
        )


def _champion(dataset: str) -> str | None:
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
