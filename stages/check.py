"""Checks every entry of params.yaml before any stage runs: ``convoy check``."""

import sys
from importlib import import_module
from pathlib import Path

from convoy import doctor, params
from convoy.errors import ConfigurationError
from convoy.repo import busy, lockfile
from convoy.schema import prepare
from convoy.tracking import outbox, relocation
from stages.search_space import OutsideError


def check() -> None:
    """Checks every entry of params.yaml against its stage, without running any, and what else keeps stages from it.

    Raises:
        BusyError: another process brings stages of this checkout up to date.
        IntegrityError: dvc.lock is not whole.
        ConfigurationError: names the first entry that is wrong, and what is allowed there; or a library.
    """
    doctor.check_libraries()
    sections = params.load()
    busy.free()
    lockfile.mend()
    for file in outbox.aside():
        print(
            f"warning: {file} is a record that MLflow did not take; name it back and run ship, or remove it",
            file=sys.stderr,
        )
    if relocation.is_used():
        relocation.follow(Path.cwd())
        for problem in relocation.missing(Path.cwd()):
            print(f"warning: {problem}", file=sys.stderr)
    searches = sections.pop("tune")
    for stage, entries in sections.items():
        for name, entry in entries.items():
            _, arguments = prepare(stage, name, entry)
            dataset = arguments["dataset"] if stage == "train" else name
            # train reads what augment wrote, which reads what ingest wrote; register, what train and evaluate wrote
            for needed in {"augment": ["ingest"], "train": ["ingest", "augment"], "register": ["ingest"]}.get(
                stage, []
            ):
                if dataset not in sections[needed]:
                    raise ConfigurationError(
                        f"params.yaml, {stage}.{name}: {needed} has no data set {dataset!r}. "
                        f"It has: {', '.join(sections[needed]) or 'none'}."
                    )
            if stage == "train":
                kind = sections["ingest"][dataset].get("kind")
                module, where = import_module("stages.train.train"), f"params.yaml, train.{name}"
                module.check_kind(where, arguments["architecture"], dataset, kind)
                module.check_keys(where, kind, arguments)
            if stage == "register" and not params.models(name):
                raise ConfigurationError(f"params.yaml, register.{name}: no model of train has the data set {name!r}.")
    for name, entry in searches.items():
        function, arguments = prepare("tune", name, entry)
        try:
            function(name, **arguments)
        except OutsideError as error:
            print(f"warning: {error}", file=sys.stderr)
