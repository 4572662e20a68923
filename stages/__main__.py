"""Run one stage: ``python -m stages train lenet5``.

Beside them: ``check`` looks at all of params.yaml first, ``doctor`` at the machine, ``cost`` says what trainings would
take, ``measure`` how one computes fastest here; ``verify``, ``push`` and ``pull`` are in ``verify.py``, ``trace``,
``rebuild``, ``rollback`` and ``clean`` in ``lineage.py``; ``ship`` brings to MLflow what waits for it, see
``outbox.py``; ``trial`` is what ``flows/tune/tune.py`` runs, ``pace`` what ``measure`` does.
"""

if __name__ == "__main__":  # before the other imports, which take half a second
    from convoy.machine import interrupt

    interrupt.catch()

import errno
import gc
import json
import os
import sys
import time
import traceback
import unicodedata
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from convoy import journal, params
from convoy.errors import ConfigurationError, InputRefusedError, ServiceError, StageError
from convoy.machine import interrupt, orphans, room
from convoy.repo import lockfile
from convoy.secrets import redacted
from convoy.tracking import outbox
from stages.check import prepare


def main(*words: str) -> int:
    """Returns the exit status; see ``errors.py``."""
    try:
        with interrupt.explained():
            _command(words)
    except StageError as error:
        print("error:", "\n".join(_one_line(redacted(str(line))) for line in error.args), file=sys.stderr)
        return error.status
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            print(f"error: {error.strerror}: {error.filename or 'the disk'}. Make room and run again.", file=sys.stderr)
            return ServiceError.status
        # Only where MLflow was used; it takes seconds to import.
        if (store := sys.modules.get("convoy.tracking.store")) and (said := store.explained(error)):
            print(f"error: {_one_line(redacted(str(said)))}", file=sys.stderr)
            return said.status
        raise
    return 0


def _command(words: Sequence[str]) -> None:
    """Does what was typed.

    Raises:
        StageError: it failed, or it is no command.
    """
    match words:
        case ["check"]:
            import_module("stages.check").check()
        case ["schema"]:
            import_module("stages.check").write_schema()
        case ["cost", *names] if names:
            cost(names)
        case ["doctor"]:
            import_module("convoy.doctor").doctor()
        case ["verify"] | ["verify", _]:
            import_module("convoy.repo.verify").verify(*words[1:])
        case ["push", "--repair"] | ["push", "--repair", _]:
            import_module("convoy.repo.transfer").push(*words[2:], repair=True)
        case ["push"] | ["push", _]:
            import_module("convoy.repo.transfer").push(*words[1:])
        case ["pull"] | ["pull", _]:
            import_module("convoy.repo.transfer").pull(*words[1:])
        case ["ship"]:
            count = import_module("convoy.tracking.shipping").ship()
            aside = len(outbox.aside())
            rest = f"{aside} records in {outbox.FOLDER} are set aside" if aside else "nothing waits any more"
            print(f"brought {count} runs to MLflow; {rest}")
        case ["ship", number, name]:
            import_module("convoy.tracking.shipping").follow(number, name)
        case ["trace" | "rebuild" as command, name]:
            getattr(import_module("stages.lineage"), command)(name)
        case ["rollback", dataset, "--to", number, "--reason", *reason]:
            import_module("stages.lineage").rollback(dataset, number, " ".join(reason))
        case ["clean", "--keep", kept, *dry] if dry in ([], ["--dry-run"]):
            import_module("stages.lineage").clean(*_kept(kept), dry_run=bool(dry))
        case ["measure" | "trial" as command, name]:
            training(command, name)
        case ["pace", name, policy]:
            policy = json.loads(policy)
            training("pace", name, policy.pop("steps"), policy)
        case [stage, name]:
            run(stage, name)
        case _:
            raise ConfigurationError(
                f"got {' '.join(words) or 'nothing'}. Usage: python -m stages STAGE NAME, or python -m stages "
                "check, doctor, cost MODEL ..., measure MODEL, verify, push, pull, ship, trace DATASET@champion, "
                "rebuild DATASET@VERSION, rollback DATASET --to VERSION --reason TEXT, "
                "clean --keep champion,last:3 [--dry-run]. Stages: "
                f"{', '.join(params.STAGES)}."
            )


def run(stage: str, name: str) -> None:
    """Runs one stage on one name, and notes how it ended in the journal."""
    lockfile.keep()
    given = params.read(stage, name)
    if stage in ("train", "evaluate"):
        import_module("convoy.model.backend")  # imports Keras first, quietly
    entry = prepare(stage, name, given)
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


def training(command: str, name: str, *others: Any) -> None:
    """Does something else than a stage with a training of params.yaml, which keeps no model."""
    given = params.read("train", name)
    import_module("convoy.model.backend")  # imports Keras first, quietly
    module = import_module("stages.train.train" if command == "trial" else "stages.train.speed.commands")
    getattr(module, command)(name, prepare("train", name, given), *others)


def _kept(kept: str) -> tuple[int, bool]:
    """Returns how many versions stay, and whether older ones with an alias do, of ``champion,last:3``."""
    parts = kept.split(",")
    numbers = [part.removeprefix("last:") for part in parts if part.startswith("last:")]
    if (
        len(numbers) > 1
        or set(parts) - {"champion", *(f"last:{number}" for number in numbers)}
        or not all(number.isdecimal() for number in numbers)
    ):
        raise ConfigurationError(f"--keep {kept}: allowed are champion, last:3, or champion,last:3.")
    return int(numbers[0]) if numbers else 0, "champion" in parts


def cost(names: Sequence[str]) -> None:
    """Prints what trainings would cost, one JSON object each: that of ``plan``, or why it is ``unknown``."""
    import_module("convoy.model.backend")  # imports Keras first, quietly
    plan = import_module("stages.train.speed.commands").plan
    for name in names:
        try:
            with redirect_stdout(sys.stderr):  # for what is said while texts are read
                found = plan(name, prepare("train", name, params.read("train", name)))
        except InputRefusedError:
            found = {"unknown": "its data is not there yet"}
        except StageError as error:
            found = {"unknown": _one_line(str(error))}
        print(json.dumps({"model": name} | found), flush=True)


def _one_line(message: str) -> str:
    """Returns a message, which may quote raw data, without what would steer a terminal or end the line."""
    return "".join(sign if unicodedata.category(sign) != "Cc" else f"\\x{ord(sign):02x}" for sign in message)


def show_defect(*raised: Any) -> None:
    """Prints an exception that nothing foresaw, as Python does, without the secrets that it may quote."""
    sys.stderr.write(redacted("".join(traceback.format_exception(*raised))))


if __name__ == "__main__":
    # Before any library is imported that reads them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes are no news to the user
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # Importing Keras and MLflow makes a million objects that stay, and Python would look through them again and again,
    # and once more at its end: a third of the 3.3 s in which Keras starts and ends.
    gc.set_threshold(50_000, 20, 50)
    sys.excepthook = show_defect
    orphans.watch()
    status = main(*sys.argv[1:])
    gc.freeze()
    interrupt.leave(status)
