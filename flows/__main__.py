"""What people type: ``python -m flows pipeline``, ``worker``, ``schedule``, ``plan``, ``tune``, ``serve``..."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from prefect.states import State

    from flows.session import ServerLostError

BEGUN = "CONVOY_BEGUN"  # Unix time: this command goes on for one that began then, and whose Prefect server went away

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
    """Returns the exit status; see ``convoy/errors.py``. After Ctrl-C it is that of shells, 130."""
    try:
        return _command(words)
    except KeyboardInterrupt:
        print("ended; what was done is kept, and the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT


def _command(words: Sequence[str]) -> int:
    from convoy import doctor
    from convoy.errors import StageError
    from convoy.secrets import redacted

    parser = argparse.ArgumentParser(prog="python -m flows", description="convoy's flows")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("pipeline", help="bring stages up to date in parallel, each training on its own device")
    run.add_argument("targets", nargs="*", metavar="TARGET", help="a stage (train@resnet) or a kind (train); all")
    run.add_argument("--slots", type=int, metavar="N", help="trainings at once; default: one per GPU, or one")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    run.add_argument(
        "--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers do it, e.g. tcp://host:8786"
    )

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
            return _pipeline(asked.targets, asked.slots, asked.force, asked.cluster)
        if asked.command == "worker":
            from flows.run import worker

            worker.serve(asked.address, asked.slots)
        elif asked.command == "schedule":
            from flows import nightly

            nightly.serve(asked.cron, asked.targets, asked.slots, asked.cluster)
        elif asked.command == "plan":
            from flows.show import plan

            plan.show(asked.targets, asked.slots)
        elif asked.command == "tune":
            return _tune(asked.model, asked.trials, asked.minutes, asked.slots)
        elif asked.command == "ui":
            from flows.show import ui

            ui.serve(asked.port, asked.prefect_port)
        elif asked.command == "predict":
            from flows.serve import predict

            predict.predict(asked.dataset, asked.input, asked.output)
        elif asked.command == "serve":
            from flows.serve import serve

            serve.serve(asked.dataset, asked.port)
        else:
            from flows.show import results

            results.show(asked.since)
    except StageError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return error.status
    except Exception as error:
        # Only where MLflow was used; it takes seconds to import.
        if (store := sys.modules.get("convoy.tracking.store")) and (said := store.explained(error)):
            print(f"error: {redacted(str(said))}", file=sys.stderr)
            return said.status
        raise
    return 0


def _pipeline(targets: list[str], slots: int | None, force: bool, cluster: str | None) -> int:
    from stages import check

    begun = os.environ.pop(BEGUN, None)  # only here: what this starts is no second try
    since = int(begun or time.time())
    check.check()  # before seconds of start-up
    from flows import session
    from flows.show import results

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = _reported(targets, slots, force, cluster)
    except session.ServerLostError as error:
        if begun or force:  # forced, what is done would be done again
            raise
        _begin_anew(error, since)
    if state.is_completed() or results.ran_since(since):
        results.show(since, targets)
    if state.is_cancelled():
        print("cancelled in Prefect; the next run goes on from there", file=sys.stderr)
        return 130
    state.result()
    return 0


def _reported(*arguments: Any) -> "State":
    """Runs the flow.

    Raises:
        ServerLostError: Prefect's server went away meanwhile; nobody asked the flow to end.
    """
    from httpx import HTTPError, HTTPStatusError

    from flows import session
    from flows.pipeline import pipeline

    with session.reporting() as address, session.quiet(sys.stdout.isatty()):
        try:
            state = pipeline(*arguments, return_state=True)
        except HTTPError as error:
            _end_if_asked(error)
            if isinstance(error, HTTPStatusError) and not error.response.is_server_error:
                raise
            raise session.ServerLostError(address) from error
    if state.is_crashed() and session.away(address):
        raise session.ServerLostError(address)
    return state


def _end_if_asked(error: BaseException) -> None:
    """Ends as Ctrl-C or SIGTERM ask for, if they are what Prefect could not tell its server."""
    from prefect.exceptions import TerminationSignal

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt | SystemExit):
            raise seen from None
        if isinstance(seen, TerminationSignal):
            sys.exit(128 + seen.signal)
        seen = seen.__cause__ or seen.__context__


def _begin_anew(lost: "ServerLostError", since: int) -> NoReturn:
    """Replaces this process by the same command: what is done is kept.

    This one would wait at its end to tell the server that is gone of each task, ten seconds and more for each.
    """
    print(
        f"warning: {lost.what}; going on {'without it ' if lost.gone else ''}from what is done",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    if lost.gone:
        os.environ["PREFECT_API_URL"] = ""  # also where a profile sets it
    os.environ[BEGUN] = str(since)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _tune(model: str, trials: int | None, minutes: float | None, slots: int | None) -> int:
    from flows.tune.tune import tune

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tune(model, trials, minutes, slots)
    return 0


if __name__ == "__main__":
    from stages.__main__ import show_defect

    sys.excepthook = show_defect
    status = main(sys.argv[1:])
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on Python would print where it ends
    sys.exit(status)
