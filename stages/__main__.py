"""Runs one stage: ``python -m stages train lenet5``, as dvc.yaml calls it.

Beside the stages it knows what processes of convoy start by themselves: ``trial`` (``flows/tune/trials.py``), ``pace``
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
    given = params.read(stage, name)
    if stage in ("train", "evaluate"):
        import_module("convoy.model.backend")  # imports Keras first, quietly
    entry = _prepare(stage, name, given)
    function = getattr(import_module(f"stages.{stage}.{stage}"), stage)
    started, status = time.time(), 1
    try:
        with interrupt.explained():
            function(name, entry)
        status = 0
    except StageError as error:
        status = error.status
        raise
    finally:
        ended = {
            "stage": f"{stage}@{name}",
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "memory": round(room.peak() / 2**20),
            "status": status,
        }
        journal.add(ended)


def _prepare(stage: str, name: str, given: dict[str, Any]) -> Any:
    # Imported here: its library takes 0.3 s, which the process that uploads a run has no use for.
    return import_module("stages.check").prepare(stage, name, given)


def training(command: str, name: str, *others: Any) -> None:
    """Does something else than a stage with a training of params.yaml, which keeps no model."""
    given = params.read("train", name)
    import_module("convoy.model.backend")  # imports Keras first, quietly
    module = import_module("stages.train.train" if command == "trial" else "stages.train.speed.commands")
    getattr(module, command)(name, _prepare("train", name, given), *others)


def cost(names: Sequence[str]) -> None:
    """Prints what trainings would cost, one JSON object each: that of ``plan``, or why it is ``unknown``."""
    import_module("convoy.model.backend")  # imports Keras first, quietly
    plan = import_module("stages.train.speed.commands").plan
    for name in names:
        try:
            with redirect_stdout(sys.stderr):  # reading texts prints a line
                found = plan(name, _prepare("train", name, params.read("train", name)))
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
