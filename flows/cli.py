"""The command ``convoy``: all that people type.

What a command acts on is positional: stages, models, data sets, versions, files. How it does that is a
``--long-option``. A library is imported when a command needs it, so that ``--help`` answers at once.
"""

import inspect
import signal
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnusedCliTokensError

from convoy import CODE, command, spellings
from convoy.errors import ConfigurationError
from convoy.machine import interrupt

PIPELINE = Group("Pipeline", sort_key=1)
MODELS = Group("Models", sort_key=2)
REGISTRY = Group("Registry", sort_key=3)
DATA = Group("Data", sort_key=4)
MACHINE = Group("Machine", sort_key=5)
ABOUT = Group("About convoy", sort_key=6)


def _read_version() -> str:
    return "convoy " + tomllib.loads((CODE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


app = App(
    "convoy",
    help="From a raw data set to a registered, served network. Run it at the root of a checkout.",
    version=_read_version,
    help_format="plaintext",
    help_epilogue="convoy COMMAND --help describes a command, with examples.",
    group_commands=ABOUT,
    group_parameters=Group("Options"),
    default_parameter=Parameter(negative=(), show_default=lambda value: None if value in (False, None) else value),
)
FLOWS: set[Callable[..., Any]] = set()  # commands that end as asyncio and Prefect end work after Ctrl-C


def _names(section: str) -> Callable[[Any], Iterable[str]]:
    """Returns what completes the names of a section of params.yaml."""

    def complete(_: Any) -> Iterable[str]:
        from convoy import params

        return list(params.load()[section])

    return complete


def _stages(_: Any) -> Iterable[str]:
    """Yields kinds of stages and stages."""
    from convoy import params

    sections = params.load()
    for stage in params.STAGES:
        yield stage
        yield from (f"{stage}@{name}" for name in sections[params.section_of(stage)])


def _word(name: str, help: str, completer: Callable[[Any], Iterable[str]] | None = None) -> Parameter:  # noqa: A002
    """Returns what describes a positional argument."""
    return Parameter(name, metavar=name, help=help, completer=completer)


def _option(value: str, help: str) -> Parameter:  # noqa: A002
    """Returns what describes an option with a value."""
    return Parameter(metavar=value, help=help)


Target = Annotated[str, _word("TARGET", "a stage (train@resnet) or a kind (train); default: all", _stages)]
Model = Annotated[str, _word("MODEL", "an entry of train: in params.yaml", _names("train"))]
Searched = Annotated[str, _word("MODEL", "an entry of tune: in params.yaml, which has the ranges", _names("tune"))]
Dataset = Annotated[str, _word("DATASET", "the data set whose champion answers", _names("register"))]
Version = Annotated[str, _word("DATASET@VERSION", "a registered version, digits@3, or an alias, digits@champion")]
Number = Annotated[str, _word("DATASET@VERSION", "a registered version: digits@3")]
Remote = Annotated[str | None, _word("REMOTE", "a remote of DVC; default: the default one")]
Input = Annotated[Path, _word("INPUT", "a folder, .csv or .parquet of examples; of texts also a .txt")]
Output = Annotated[Path, _word("OUTPUT", "a .csv or .parquet, written whole or not at all")]
Address = Annotated[str, _word("ADDRESS", "a Dask scheduler, e.g. tcp://host:8786")]

Slots = Annotated[int | None, _option("N", "trainings at once; default: one per GPU, or one")]
Cluster = Annotated[str | None, _option("ADDRESS", "a Dask scheduler whose workers do it, e.g. tcp://host:8786")]
Force = Annotated[bool, Parameter(help="run also what is up to date")]
Cron = Annotated[str, _option("WHEN", "minute hour day month weekday")]
Trials = Annotated[int | None, _option("N", "trials, with those of former runs; default: the entry's")]
Minutes = Annotated[float | None, _option("M", "begin no trial after so many minutes; default: the entry's")]
Port = Annotated[int, _option("PORT", "a port of loopback")]
PrefectPort = Annotated[int, _option("PORT", "the port of Prefect's pages")]
Since = Annotated[int | None, _option("SECONDS", "Unix time; stages that started later are 'ran'")]
Repair = Annotated[bool, Parameter(help="replace damaged files of the remote by whole ones of this clone")]
Reason = Annotated[str, _option("TEXT", "for those who come after; kept with both versions")]
Last = Annotated[int, _option("N", "how many versions of a data set, and runs and searches of a model, stay")]
Champions = Annotated[bool, Parameter(help="older versions stay to which an alias such as champion points")]
Dry = Annotated[bool, Parameter(help="only say what would go")]


def _usage(function: Callable[..., Any]) -> str:
    """Returns all that a command takes, in a line: ``convoy tune MODEL [--trials N]``."""
    words = ["convoy", function.__name__]
    for one in inspect.signature(function).parameters.values():
        word = one.annotation.__metadata__[0].metavar or ""
        if one.kind is one.VAR_POSITIONAL:
            word = f"[{word} ...]"
        elif one.kind is one.KEYWORD_ONLY:
            word = f"--{one.name.replace('_', '-')} {word}".rstrip()
        words.append(word if one.default is one.empty else f"[{word}]")
    return " ".join(words)


def _command(group: Group, *examples: str, flow: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns what makes a function a command of its name; its docstring and ``examples`` are its help."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        epilogue = "\n".join([f"Example{'s' * (len(examples) > 1)}:", *(f"  convoy {example}" for example in examples)])
        place = len(app.resolved_commands())  # the order in help is that of this file
        usage = f"Usage: {_usage(function)}"
        app.command(function, group=group, sort_key=place, usage=usage, help_epilogue=epilogue, version_flags=())
        if flow:
            FLOWS.add(function)
        return function

    return add


@_command(PIPELINE, "run", "run train@resnet --slots 2", "run evaluate --cluster tcp://host:8786", flow=True)
def run(*targets: Target, slots: Slots = None, force: Force = False, cluster: Cluster = None) -> int:
    """Run the stages that are not up to date, in parallel, each training on its own device."""
    from flows.run.command import run

    return run(targets, slots, force, cluster)


@_command(PIPELINE, "plan", "plan train", flow=True)
def plan(*targets: Target, slots: Slots = None) -> None:
    """Say what would run, why, where, and how long it took last time."""
    from flows.show import plan

    plan.show(targets, slots)


@_command(PIPELINE, "show", "show --since 1764547200", flow=True)
def show(*, since: Since = None) -> None:
    """Print every model with its score, and the champions."""
    from flows.show import results

    results.show(since)


@_command(PIPELINE, "check")
def check() -> None:
    """Check every entry of params.yaml before any work: keys, values, names."""
    from stages import check

    check.check()


@_command(PIPELINE, "schema")
def schema() -> None:
    """Write params.schema.json, by which editors complete and check params.yaml."""
    from stages import check

    check.write_schema()


@_command(PIPELINE, "schedule", 'schedule train --cron "0 2 * * *"', flow=True)
def schedule(*targets: Target, cron: Cron = "0 2 * * *", slots: Slots = None, cluster: Cluster = None) -> None:
    """Pull, run and push whenever it is time, until Ctrl-C."""
    from flows import nightly

    nightly.serve(cron, list(targets), slots, cluster)


@_command(PIPELINE, "worker tcp://host:8786 --slots 2", flow=True)
def worker(address: Address, /, *, slots: Slots = None) -> None:
    """Work in this clone for those who run with --cluster, until Ctrl-C."""
    from flows.run import worker

    worker.serve(address, slots)


@_command(MODELS, "tune lenet5", "tune lenet5 --trials 60 --minutes 30 --slots 2", flow=True)
def tune(model: Searched, /, *, trials: Trials = None, minutes: Minutes = None, slots: Slots = None) -> None:
    """Search for better values of a model's entry; params.yaml gets the best."""
    from flows.tune.tune import tune

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tune(model, trials, minutes, slots)


@_command(MODELS, "cost lenet5 resnet")
def cost(model: Model, /, *more: Model) -> None:
    """Print what trainings would cost, a JSON object for each: parameters, operations, memory."""
    from stages.__main__ import cost

    cost([model, *more])


@_command(MODELS, "measure lenet5")
def measure(model: Model, /) -> None:
    """Measure the fastest settings for a training on this machine, and what each took."""
    from stages.__main__ import training

    training("measure", model)


@_command(MODELS, "predict digits pictures/ predictions.csv", "predict reviews reviews.txt out.parquet", flow=True)
def predict(dataset: Dataset, source: Input, target: Output, /) -> None:
    """Have the champion predict a folder or a file of examples."""
    from flows.serve import predict

    predict.predict(dataset, source, target)


@_command(MODELS, "serve digits", "serve reviews --port 8000", flow=True)
def serve(dataset: Dataset, /, *, port: Port = 5001) -> None:
    """Have the champion answer raw examples over HTTP, on loopback, until Ctrl-C."""
    from flows.serve import serve

    serve.serve(dataset, port)


@_command(REGISTRY, "trace digits@champion")
def trace(version: Version, /) -> None:
    """Print where a version comes from: raw files, shards, training, evaluation, decision."""
    from stages import lineage

    lineage.trace(version)


@_command(REGISTRY, "rebuild digits@3")
def rebuild(version: Version, /) -> None:
    """Train a version once more, elsewhere, from what was recorded, and compare the bytes."""
    from stages import lineage

    lineage.rebuild(version)


@_command(REGISTRY, 'rollback digits@2 --reason "wrong on 7"')
def rollback(version: Number, /, *, reason: Reason) -> None:
    """Make an earlier version champion again."""
    dataset, _, number = version.rpartition("@")
    if not (dataset and number):
        raise ConfigurationError(f"{version!r} names no version. Allowed: digits@3.")
    from stages import lineage

    lineage.rollback(dataset, number, reason)


@_command(REGISTRY, "clean --keep-last 3 --keep-champions --dry-run", "clean --keep-last 3 --keep-champions")
def clean(*, keep_last: Last, keep_champions: Champions = False, dry_run: Dry = False) -> None:
    """Remove versions, runs, data and checkpoints that nothing which stays needs."""
    if keep_last < 0:
        raise ConfigurationError(f"--keep-last {keep_last}: allowed is 0 or more.")
    from stages import lineage

    lineage.clean(keep_last, keep_champions, dry_run)


@_command(REGISTRY, "ship")
def ship() -> None:
    """Upload to MLflow the records that wait for it."""
    from convoy.tracking import outbox, shipping

    count = shipping.ship()
    aside = len(outbox.aside())
    rest = f"{aside} records in {outbox.FOLDER} are set aside" if aside else "nothing waits any more"
    print(f"brought {count} runs to MLflow; {rest}")


@_command(DATA, "verify", "verify storage")
def verify(remote: Remote = None, /) -> None:
    """Read all data, DVC's cache and a remote, and name what is damaged."""
    from convoy.repo import verify

    verify.verify(remote)


@_command(DATA, "push", "push storage --repair")
def push(remote: Remote = None, /, *, repair: Repair = False) -> None:
    """Send data and models to a remote, only what is whole."""
    from convoy.repo import transfer

    transfer.push(remote, repair=repair)


@_command(DATA, "pull")
def pull(remote: Remote = None, /) -> None:
    """Get data and models from a remote; the workspace changes when all has arrived whole."""
    from convoy.repo import transfer

    transfer.pull(remote)


@_command(MACHINE, "doctor")
def doctor() -> None:
    """Check this machine: libraries, clock, disk, permissions, servers, GPU."""
    from convoy import doctor

    doctor.doctor()


@_command(MACHINE, "ui", "ui --port 5050 --prefect-port 4300", flow=True)
def ui(*, port: Port = 5000, prefect_port: PrefectPort = 4200) -> None:
    """Serve MLflow's and Prefect's pages on loopback, until Ctrl-C."""
    from flows.show import ui

    ui.serve(port, prefect_port)


@app.command(name="--install-completion", group=ABOUT, version_flags=(), help_epilogue="")
def _install_completion() -> None:
    """Have this shell (bash, zsh, fish) complete commands, options and names of params.yaml."""
    print(f"written: {app.install_completion()}; it works in the next shell")


def main(words: Sequence[str]) -> int:
    """Does what was typed; returns the exit status, see ``convoy/errors.py``; after Ctrl-C that of shells, 130."""
    renewed = spellings.renew(words)
    if renewed != list(words):
        spellings.note(renewed)
    try:
        return _do(renewed)
    except KeyboardInterrupt:
        print("ended; what was done is kept, and the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if (status := command.report(error)) is None:
            raise
        return status


def _do(words: list[str]) -> int:
    try:
        function, bound, _ = app.parse_args(words or ["--help"], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise ConfigurationError(_explain(error)) from None
    if function.__module__ == __name__ and function is not doctor:  # which says it more fully; and it is no --help
        from convoy import doctor as libraries

        libraries.check_libraries()  # before they are imported
    if function in FLOWS:
        interrupt.release()
        return function(*bound.args, **bound.kwargs) or 0
    with interrupt.explained():
        function(*bound.args, **bound.kwargs)
    return 0


def _explain(error: CycloptsError) -> str:
    """Returns what is wrong with a command line, and what is allowed."""
    error.verbose = False
    used = error.command_chain or ()
    if not used:
        named = [name for name in app.resolved_commands() if not name.startswith("-")]
        return f"{str(error).split(' Available commands')[0]} Commands: {', '.join(named)}."
    problem = str(error)
    if isinstance(error, UnusedCliTokensError):
        problem = f"convoy {used[0]} takes no {' '.join(error.unused_tokens)}."
    if isinstance(error, MissingArgumentError):
        problem = f"convoy {used[0]} lacks {error.argument.name}."
    return f"{problem} {app[used[0]].usage}"
