"""Runs one stage: ``python -m stages train lenet5``, as dvc.yaml calls it.

Beside the stages it knows what processes of convoy start by themselves: ``trial`` (``flows/tune/tune.py``), ``pace``
(``stages/train/speed/policy.py``) and ``ship ID NAME`` (``convoy/tracking/outbox.py``). People type ``convoy``, see
``flows/cli.py``.
"""

if __name__ == "__main__":  # before the other imports, which take half a second
    from convoy.machine import interrupt

    interrupt.catch()

    import sys

    from convoy import spellings

    spellings.replace_process(sys.argv[1:])

import gc
import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from convoy import command, journal, params
from convoy.errors import ConfigurationError, InputRefusedError, StageError
from convoy.machine import interrupt, orphans, room
from convoy.repo import lockfile
from convoy.schema import prepare


def main(*words: str) -> int:
    """Returns the exit status; see ``errors.py``."""
    try:
        with interrupt.explained():
            _do(words)
    except Exception as error:
        if (status := command.report(error)) is None:
            raise
        return status
    return 0


def _do(words: Sequence[str]) -> None:
    """Does what was asked for.

    Raises:
        StageError: it failed, or it is no command.
    """
    match words:
        case ["ship", number, name]:
            import_module("convoy.tracking.shipping").follow(number, name)
        case ["trial", name]:
            training("trial", name)
        case ["pace", name, policy]:
            policy = json.loads(policy)
            training("pace", name, policy.pop("steps"), policy)
        case [stage, name]:
            run(stage, name)
        case _:
            raise ConfigurationError(
                f"got {' '.join(words) or 'nothing'}. Usage: python -m stages STAGE NAME. "
                f"Stages: {', '.join(params.STAGES)}. For all else there is convoy: convoy --help."
            )


def run(stage: str, name: str) -> None:
    """Runs one stage on one name, and notes how it ended in the journal."""
    lockfile.keep()
    entry = params.read(stage, name)
    if stage in ("train", "evaluate"):
        import_module("convoy.model.backend")  # imports Keras first, quietly
    function, arguments = prepare(stage, name, entry)
    started, status = time.time(), 1
    try:
        with interrupt.explained():
            function(name, **arguments)
        status = 0
    except StageError as error:
        status = error.status
        raise
    finally:
        entry = {
            "stage": f"{stage}@{name}",
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "memory": round(room.peak() / 2**20),
            "status": status,
        }
        journal.add(entry)


def training(command: str, name: str, *others: Any) -> None:
    """Does something else than a stage with a training of params.yaml: a function of train.py, which keeps no model."""
    entry = params.read("train", name)
    import_module("convoy.model.backend")  # as of ``run``
    _, arguments = prepare("train", name, entry)
    getattr(import_module("stages.train.train"), command)(name, *others, **arguments)


def cost(names: Sequence[str]) -> None:
    """Prints what trainings would cost, one JSON object each: as of ``planned``, or why it is ``unknown``."""
    import_module("convoy.model.backend")  # imports Keras first, quietly
    planned = import_module("stages.train.train").planned
    for name in names:
        try:
            with redirect_stdout(sys.stderr):  # for what is said while texts are read
                found = planned(name, prepare("train", name, params.read("train", name))[1])
        except InputRefusedError:
            found = {"unknown": "its data is not there yet"}
        except StageError as error:
            found = {"unknown": command.one_line(str(error))}
        print(json.dumps({"model": name} | found), flush=True)


if __name__ == "__main__":
    command.prepare_environment()
    # Importing Keras and MLflow makes a million objects that stay, and Python would look through them again and again,
    # and once more at its end: a third of the 3.3 s in which Keras starts and ends.
    gc.set_threshold(50_000, 20, 50)
    sys.excepthook = command.show_defect
    orphans.watch()
    status = main(*sys.argv[1:])
    gc.freeze()
    interrupt.leave(status)
