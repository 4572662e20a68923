"""What a stage says of its work, kept in a file of this checkout whether or not MLflow can be reached.

``data/runs/<id>.jsonl`` has one line per fact, which is on the disk before the work goes on. A process beside it,
``python -m stages ship <id> <name>`` (``shipping.follow``), uploads the lines to MLflow and removes the file when all
of them have arrived. What it cannot upload waits for the next such process. So the work never waits for a server, nor
for MLflow's seconds of start-up.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from filelock import FileLock

from convoy import CODE, files, secrets
from convoy.errors import ServiceError

FOLDER = Path("data/runs")
MEASURED = Path("data/train/.cache/measured")  # outside of DVC's outputs, which are equal bytes for equal input
RUN_IDS = Path("data/train/.cache/mlflow")
WAIT = 20.0  # seconds that a stage which has ended gives the process that ships its last lines
HURRY = 3.0  # the same, of a stage that was asked to end


class Record:
    """The lines of one run; a stage that died left them without its last one, ``close``.

    Attributes:
        id: the run has it in MLflow as its tag ``record``.
    """

    def __init__(self, number: str, opening: dict[str, Any]) -> None:
        self.id = number
        self._opening: dict[str, Any] | None = opening  # until there is something to say

    def metrics(self, numbers: Mapping[str, float], step: int | None = None) -> None:
        """Adds numbers, e.g. one epoch's."""
        self._say("metrics", numbers={key: float(value) for key, value in numbers.items() if key != "epoch"}, step=step)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Adds what a training turned out to be: numbers become metrics, the rest tags."""
        self._say("facts", facts=secrets.redacted_values(facts))

    def data(self, context: str, name: str, folder: Path, digest: str) -> None:
        """Adds a split that the run reads, which MLflow shows as its data set.

        Args:
            context: training, validation or test.
            name: of the data set.
            folder: of its shards.
            digest: SHA-256 of their index.
        """
        self._say("data", context=context, name=name, folder=folder.as_posix(), digest=digest)

    def files(self, folder: Path) -> None:
        """Adds the files of a stage's output, as they are when they are shipped, under the name of that stage."""
        self._say("files", folder=folder.as_posix(), place=folder.parts[1])

    def open(self) -> None:
        """Says that the run has begun, which else its first fact does."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self._say("open", **opening)

    def close(self, status: str) -> None:
        """Says how it ended, in MLflow's word for it, if anything was said at all."""
        if self._opening is None:
            self._say("close", status=status)

    def _say(self, what: str, **more: Any) -> None:
        self.open()
        line = json.dumps({"what": what, "at": int(time.time() * 1000)} | more, default=str) + "\n"
        with path(self.id).open("ab+") as file:
            if _is_cut_off(file):  # by a kill or a full disk; this line is whole
                file.write(b"\n")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether the last line of a file, which is at its end, lacks its end."""
    if file.tell() == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


@contextmanager
def run(
    number: str, name: str, dataset: str, parameters: dict[str, Any], inputs: dict[str, str], anew: bool = True
) -> Iterator[Record]:
    """Begins a run, or goes on with one whose process died.

    Args:
        number: its id, which follows from all that its result depends on.
        name: DVC's name of the stage, e.g. ``train@lenet5``.
        dataset: MLflow's experiment.
        parameters: logged as they are; nested mappings with dots.
        inputs: path -> SHA-256 of what the run reads.
        anew: it begins; what MLflow has of an equal one that ended is another run.
    """
    found, patch = tags(name, dataset, inputs)
    opening = {
        "name": name,
        "dataset": dataset,
        "tags": found,
        "parameters": secrets.redacted_values(flat(parameters)),
        "patch": patch,
    }
    with _written(number, opening | {"anew": anew}) as record:
        record.open()
        yield record


@contextmanager
def reopened(facts: Mapping[str, Any]) -> Iterator[Record]:
    """Continues the run of a training, given its ``run.json``; its end stays the training's.

    If DVC pulled the trained model from elsewhere, MLflow here does not know the run; a new one takes its place.
    """
    found = {"stage": "train", "model": facts["model"], "dataset": facts["dataset"]}
    opening = {"name": f"train@{facts['model']}", "dataset": facts["dataset"], "tags": found, "later": True}
    with _written(record_id(facts), opening) as record:
        yield record


def keep(facts: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Keeps what a training took here - seconds, memory, speed - beside its ``run.json``; see ``measured``."""
    _write(MEASURED, facts["dataset"], facts["model"], {"record_id": record_id(facts)} | measured)


def keep_run_id(dataset: str, model: str, number: str, run_id: str) -> None:
    """Keeps MLflow's own id of the last run of a model that was uploaded: ``data/train/.cache/mlflow/<dataset>/``.

    It is in no output of DVC: MLflow draws it by chance, and each store another one.

    Args:
        dataset: of the training.
        model: of the training.
        number: id of its record, which stands in ``run.json`` too.
        run_id: MLflow's.
    """
    _write(RUN_IDS, dataset, model, {"record_id": number, "run_id": run_id})


def record_id(facts: Mapping[str, Any]) -> str | None:
    """Returns the id of a training's record, given its ``run.json``; an older convoy called it ``run_id``."""
    return facts["record_id"] if "record_id" in facts else facts.get("run_id")


def measured(facts: Mapping[str, Any], checkout: Path = Path()) -> dict[str, Any]:
    """Returns what a training took, given its ``run.json``; nothing if that was elsewhere.

    ``seconds``, ``memory`` and ``device_memory`` in MiB, ``examples_per_second`` in training,
    ``validation_examples_per_second``, and when it ``finished``.
    """
    file = checkout / MEASURED / facts["dataset"] / f"{facts['model']}.json"
    with suppress(FileNotFoundError, ValueError):  # the second: a power cut left it empty
        found = json.loads(file.read_text(encoding="utf-8"))
        if record_id(found) == record_id(facts):
            return {key: value for key, value in found.items() if key not in ("record_id", "run_id")}
    return {}


def _write(folder: Path, dataset: str, model: str, content: Mapping[str, Any]) -> None:
    file = folder / dataset / f"{model}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # two processes may upload runs of one model
        files.write_json(file, content, indent=1)


def path(number: str) -> Path:
    """Returns the file of a record."""
    return FOLDER / f"{number}.jsonl"


def aside() -> list[Path]:
    """Returns the records that no store took, which ``shipping.ship`` set aside."""
    return sorted(FOLDER.glob("*.aside"))


def writing(name: str) -> FileLock:
    """Returns the lock that who writes a record of ``train@<model>`` holds until it ended, in whatever way."""
    return FileLock(FOLDER / f"{name}.lock")


def tags(name: str, dataset: str, inputs: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Returns the tags with which a run of this process begins, and the patch of what is not committed."""
    commit, dirty, patch = git()
    stage, model = name.split("@")
    own = {"stage": stage, "model": model, "dataset": dataset, "git.commit": commit, "git.dirty": str(dirty).lower()}
    read = {f"input.{file}": digest for file, digest in inputs.items()}
    return own | {"process": process(os.getpid())} | read, patch


def process(number: int) -> str:
    """Returns what tells a process from all others, before and after it: host, number, and when it began."""
    try:
        began = psutil.Process(number).create_time()
    except psutil.NoSuchProcess:
        began = 0
    return f"{socket.gethostname()} {number} {began:.2f}"


def git() -> tuple[str, bool, str]:
    """Returns the commit, whether anything differs from it, and the patch of what git tracks, without secrets.

    dvc.lock, which DVC writes as it goes, does not count; neither does a repository that merely contains this folder.
    """

    def call(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
        return done.stdout if done.returncode == 0 else ""

    top = call("rev-parse", "--show-toplevel").strip()
    if not top or Path(top).resolve() != Path.cwd().resolve():
        return "none", False, ""
    others = ("--", ".", ":!dvc.lock")
    patch = call("diff", "--no-color", "--no-ext-diff", "--binary", "HEAD", *others)
    dirty = bool(call("status", "--porcelain", *others))
    return call("rev-parse", "HEAD").strip() or "none", dirty, secrets.redacted_patch(patch)


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as one with dots in its keys."""
    found = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


class Shipper:
    """The process that ships the lines of a record of ``train@<model>`` while they are written.

    Its warnings are printed here, and no longer than this process works: a stage whose output somebody reads to the
    end would else seem to go on for as long as its shipper waits for a server.
    """

    def __init__(self, number: str, name: str) -> None:
        environment = dict(os.environ)
        # Or else orphans.py takes the stage for DVC, and kills the shipper when the stage ends.
        environment.pop("DVC_STAGE", None)
        environment["PYTHONPATH"] = os.pathsep.join([str(CODE), *filter(None, [environment.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages", "ship", number, name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the stage; this process then uploads the rest of its record
        )
        self._relaying = threading.Thread(target=self._relay, daemon=True)
        self._relaying.start()

    def wait(self, seconds: float) -> None:
        """Waits until it is done; raises subprocess.TimeoutExpired if it is not by then, and goes on by itself."""
        self._process.wait(seconds)
        self._relaying.join()

    def _relay(self) -> None:
        for line in self._process.stdout:
            sys.stderr.write(line)
            sys.stderr.flush()


@contextmanager
def _written(number: str, opening: dict[str, Any]) -> Iterator[Record]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = Record(number, opening)
    shipping, seconds = None, WAIT
    try:
        with writing(opening["name"]):
            shipping = Shipper(number, opening["name"])
            try:
                yield record
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | ServiceError):
                    seconds = HURRY
                record.close("FAILED")
                raise
            record.close("FINISHED")
    finally:
        if shipping is not None:
            with suppress(subprocess.TimeoutExpired):  # it goes on by itself
                shipping.wait(seconds)
