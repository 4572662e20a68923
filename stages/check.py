"""Checks every entry of params.yaml before any stage runs: ``convoy check``."""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from convoy import CODE, params
from convoy.errors import ConfigurationError
from convoy.repo import busy, lockfile
from convoy.schema import Entry, checked
from convoy.tracking import outbox, relocation
from stages.train.entry import Train

SCHEMA = "params.schema.json"  # which the first line of params.yaml names


def check() -> None:
    """Checks every entry of params.yaml against its stage, without running any, and what else keeps stages from it.

    Raises:
        BusyError: another process runs stages of this checkout.
        IntegrityError: dvc.lock is not whole.
        ConfigurationError: names the first entry that is wrong, and what is allowed there; or a library.
    """
    from convoy import doctor  # half a second that `prepare`, which every stage calls, has no use for
    from stages import search_space

    doctor.check_libraries()
    sections = params.load()
    busy.free()
    lockfile.mend()
    for file in outbox.aside():
        print(
            f"warning: {file} is a record that MLflow did not take; name it back and run convoy ship, or remove it",
            file=sys.stderr,
        )
    if relocation.is_used():
        relocation.follow(Path.cwd())
        for problem in relocation.missing(Path.cwd()):
            print(f"warning: {problem}", file=sys.stderr)
    searches = sections.pop(params.TUNE)
    for stage, entries in sections.items():
        for name, given in entries.items():
            entry = prepare(stage, name, given)
            dataset = entry.dataset if isinstance(entry, Train) else name
            # train reads what augment wrote, which reads what ingest wrote; register, what train and evaluate wrote
            for needed in {"augment": ["ingest"], "train": ["ingest", "augment"], "register": ["ingest"]}.get(
                stage, []
            ):
                if dataset not in sections[needed]:
                    raise ConfigurationError(
                        f"params.yaml, {stage}.{name}: {needed} has no data set {dataset!r}. "
                        f"It has: {', '.join(sections[needed]) or 'none'}."
                    )
            if isinstance(entry, Train):
                entry.check_kind(f"params.yaml, train.{name}", sections["ingest"][dataset].get("kind"))
            if stage == "register" and not params.models(name):
                raise ConfigurationError(f"params.yaml, register.{name}: no model of train has the data set {name!r}.")
    for name, given in searches.items():
        try:
            search_space.define(name, prepare(params.TUNE, name, given))
        except search_space.OutsideError as error:
            print(f"warning: {error}", file=sys.stderr)


def prepare(stage: str, name: str, given: Mapping[str, Any]) -> Any:
    """Returns an entry of a stage, or of ``tune``, checked: of the class that ``entry.py`` of the stage has.

    Args:
        stage: the section.
        name: of the entry.
        given: its keys and values.

    Raises:
        ConfigurationError: names what is wrong, and what is allowed there.
    """
    return checked(_class(stage), name, given)


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of params.yaml, by which editors complete and check its keys."""
    from pydantic.json_schema import models_json_schema  # likewise

    classes = {stage: _class(stage) for stage in (*params.SECTIONS, params.TUNE)}
    entries, shared = models_json_schema([(one, "validation") for one in classes.values()])
    sections = {
        stage: {
            "type": "object",
            "description": one.__doc__,
            "propertyNames": {"pattern": f"^{params.NAME.pattern}$"},
            "additionalProperties": entries[one, "validation"],
        }
        for stage, one in classes.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml",
        "type": "object",
        "properties": sections,
        "required": list(params.SECTIONS),
        "additionalProperties": False,
        **shared,
    }


def write_schema() -> None:
    """Writes params.schema.json at the top of this checkout: ``convoy schema``."""
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    (CODE / SCHEMA).write_text(text, encoding="utf-8")
    print(f"{SCHEMA}: keys, values and descriptions of all sections of params.yaml")


def _class(stage: str) -> type[Entry]:
    """Returns the class of the entries of a section: it has the section's name."""
    module = "stages.search_space" if stage == params.TUNE else f"stages.{stage}.entry"
    return getattr(import_module(module), stage.capitalize())
