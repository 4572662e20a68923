"""What people type: ``python -m flows pipeline``, ``worker``, ``schedule``, ``plan``, ``tune``, ``serve``..."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.states import State

# Before any library is imported that reads them.
for name, value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start-up notes are no news to the user
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(name, value)


def main(words: Sequence[str]) -> int:
    """Returns the exit status; see ``stages/errors.py``."""
    from stages import doctor
    from stages.errors import StageError
    from stages.masking import redacted

    parser = argparse.ArgumentParser(prog="python -m flows", description="convoy's flows")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("pipeline", help="bring stages up to date in parallel, each training on its own device")
    run.add_argument("targets", nargs="*", metavar="TARGET", help="a stage (train@resnet) or a kind (train); all")
    run.add_argument("--slots", type=int, metavar="N", help="trainings at once; default: one per GPU, or one")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    run.add_argument(
        "--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers do it, e.g. tcp://host:8786"
    )
    run.add_argument("--resumed", type=int, help=argparse.SUPPRESS)  # when what goes on here began; see _reported

    helper = commands.add_parser("worker", help="work in this clone for the pipelines of others, until Ctrl-C")
    helper.add_argument("address", metavar="ADDRESS", help="of the Dask scheduler, e.g. tcp://host:8786")
    helper.add_argument("--slots", type=int, metavar="N", help="as of pipeline")

    again = commands.add_parser("schedule", help="pull, pipeline and push whenever it is time, until Ctrl-C")
    again.add_argument("targets", nargs="*", metavar="TARGET", help="as of pipeline")
    again.add_argument("--cron", default="0 2 * * *", help="when: minute hour day month weekday; default: %(default)s")
    again.add_argument("--slots", type=int, metavar="N", help="as of pipeline")
    again.add_argument("--cluster", metavar="ADDRESS", help="as of pipeline")

    plan = commands.add_parser("plan", help="what would run, why, where, and how long it took last time")
    plan.add_argument("targets", nargs="*", metavar="TARGET", help="a stage (train@resnet) or a kind (train); all")
    plan.add_argument("--slots", type=int, metavar="N", help="as of pipeline")

    search = commands.add_parser("tune", help="search for better values of a model's entry; params.yaml gets the best")
    search.add_argument("model", metavar="MODEL", help="an entry of tune: in params.yaml, which has the ranges")
    search.add_argument(
        "--trials", type=int, metavar="N", help="trials, with those of former runs; default: the entry's"
    )
    search.add_argument("--minutes", type=float, metavar="M", help="begin no trial after so many; default: the entry's")
    search.add_argument("--slots", type=int, metavar="N", help="as of pipeline: trials at once")

    batch = commands.add_parser("predict", help="have the champion predict a folder, .csv or .parquet of pictures")
    batch.add_argument("--dataset", required=True, help="whose champion")
    batch.add_argument("input", type=Path, metavar="INPUT")
    batch.add_argument("output", type=Path, metavar="OUTPUT", help="a .csv or .parquet")

    pages = commands.add_parser("ui", help="MLflow's and Prefect's pages, on loopback, until Ctrl-C")
    pages.add_argument("--port", type=int, default=5000, help="of MLflow; %(default)s")
    pages.add_argument("--prefect-port", type=int, default=4200, help="of Prefect; %(default)s")

    http = commands.add_parser("serve", help="have the champion answer raw examples over HTTP, on loopback")
    http.add_argument("--dataset", required=True, help="whose champion")
    http.add_argument("--port", type=int, default=5001, help="%(default)s")

    table = commands.add_parser("results", help="print every model with its score, and the champions")
    table.add_argument("--since", type=int, metavar="SECONDS", help="Unix time; stages run later are 'ran'")

    asked = parser.parse_args(words)
    try:
        doctor.check_libraries()  # before they are imported
        if asked.command == "pipeline":
            return _pipeline(asked.resumed, asked.targets, asked.slots, asked.force, asked.cluster)
        if asked.command == "worker":
            from flows import cluster

            cluster.serve(asked.address, asked.slots)
        elif asked.command == "schedule":
            from flows import schedule

            schedule.serve(asked.cron, asked.targets, asked.slots, asked.cluster)
        elif asked.command == "plan":
            from flows import plan

            plan.show(asked.targets, asked.slots)
        elif asked.command == "tune":
            return _tune(asked.model, asked.trials, asked.minutes, asked.slots)
        elif asked.command == "ui":
            from flows import ui

            ui.serve(asked.port, asked.prefect_port)
        elif asked.command == "predict":
            from flows import predict

            predict.predict(asked.dataset, asked.input, asked.output)
        elif asked.command == "serve":
            from flows import serve

            serve.serve(asked.dataset, asked.port)
        else:
            from flows import results

            results.show(asked.since)
    except StageError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return error.status
    return 0


def _pipeline(resumed: int | None, *arguments: Any) -> int:
    from stages import __main__ as stages_command

    since = resumed or int(time.time())
    stages_command.check()  # before seconds of start-up
    from flows import results

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = _reported(resumed, since, *arguments)
    except KeyboardInterrupt:
        print("ended; what was done is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    if state.is_completed() or results.ran_since(since):
        results.show(since)
    if state.is_cancelled():
        print("cancelled in Prefect; the next run goes on from there", file=sys.stderr)
        return 130
    state.result()
    return 0


def _reported(resumed: int | None, since: int, *arguments: Any) -> "State":  # noqa: RET503 - execv does not return
    """Runs the flow; if the server that is set went away meanwhile, the command is begun anew, once without it.

    As a new process: this one would wait at its end to tell that server of each task, ten seconds and more for each.
    """
    from httpx import TransportError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows import server
    from flows.pipeline import pipeline
    from stages.errors import ServiceError
    from stages.masking import masked

    # Prefect's five are a minute of waiting where the server is gone, for each of several requests.
    retries = temporary_settings(set_defaults={PREFECT_CLIENT_MAX_RETRIES: 2})
    with server.reporting() as address, server.quiet(sys.stdout.isatty()), retries:
        try:
            state = pipeline(*arguments, return_state=True)
        except TransportError:
            state = None
    gone = (state is None or state.is_crashed()) and server.away(address)
    if state is not None and not gone:
        return state
    if gone:
        os.environ["PREFECT_API_URL"] = ""  # also where a profile sets it
        said = "went away; going on without it from what is done"
    elif resumed:
        raise ServiceError(f"the Prefect server {masked(address)} comes and goes. Run again: what is done is kept.")
    else:
        said = "was away for a while; going on from what is done"
    print(f"warning: the Prefect server {masked(address)} {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--resumed", str(since)])


def _tune(model: str, trials: int | None, minutes: float | None, slots: int | None) -> int:
    from flows.tune import tune

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        tune(model, trials, minutes, slots)
    except KeyboardInterrupt:
        print("ended; what was tried is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
