"""The only reader and writer of params.yaml: one section per stage, one entry per name.

``evaluate`` has no section: every model of ``train`` is evaluated, on its own data set. ``tune``, which is no stage,
may have one: the searches that ``convoy tune`` knows.
"""

import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.util import load_yaml_guess_indent

from convoy import files
from convoy.errors import ConfigurationError

PARAMS = Path("params.yaml")
STAGES = ("fetch", "ingest", "augment", "train", "evaluate", "register")

SECTIONS = tuple(stage for stage in STAGES if stage != "evaluate")  # which has none of its own
TUNE = "tune"  # the section that may be missing: dvc.yaml has no stage of it

NAME = re.compile(r"[A-Za-z0-9_-]+")

Place = tuple[str, ...]  # where a value stands: ("train", "lenet5", "sizes", "maps")


def load(path: Path = PARAMS) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns every section of params.yaml; ``tune`` is empty where the file has none.

    Raises:
        ConfigurationError: the file is missing, is not YAML, or has other sections than the stages.
    """
    try:
        # YAML 1.2, the dialect in which DVC reads the same file: 1e-3 is a number, and a repeated key an error.
        sections = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} not found in {Path.cwd()}. Run this from the root of the checkout.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from error
    except YAMLError as error:
        if not isinstance(error, MarkedYAMLError):
            raise ConfigurationError(f"{path}: {error}") from error
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        hint = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        raise ConfigurationError(f"{path}, line {line}: {error.problem}{hint}") from error
    if not isinstance(sections, dict) or set(sections) - {TUNE} != set(SECTIONS):
        found = ", ".join(map(str, sections)) if isinstance(sections, dict) else type(sections).__name__
        raise ConfigurationError(
            f"{path} has the sections {found}. It needs just these, because dvc.yaml iterates over them: "
            f"{', '.join(SECTIONS)} (one without entries: `fetch: {{}}`)."
        )
    for section, entries in sections.items():
        if not isinstance(entries, dict):
            raise ConfigurationError(
                f"{path}, {section}: {entries!r} is not a mapping of names to entries (none: {{}})."
            )
        for name, entry in entries.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ConfigurationError(
                    f"{path}, {section}: the name {name!r} cannot be used; letters, digits, - and _ can (a number in "
                    "quotes), since it becomes a folder, a word of a command and a key of DVC's."
                )
            if not isinstance(entry, dict):
                raise ConfigurationError(
                    f"{path}, {section}.{name}: {entry!r} is not a mapping of keys to values (none: {{}})."
                )
    return {stage: sections[stage] for stage in SECTIONS} | {TUNE: sections.get(TUNE, {})}


def read(stage: str, name: str, path: Path = PARAMS) -> dict[str, Any]:
    """Returns the entry of one stage run, as it is written, e.g. ``read("train", "lenet5")``.

    Raises:
        ConfigurationError: there is no such stage, or no such entry in its section.
    """
    if stage not in STAGES:
        raise ConfigurationError(f"unknown stage {stage!r}. Stages: {', '.join(STAGES)}.")
    sections = load(path)
    section = sections[section_of(stage)]
    if name not in section:
        raise ConfigurationError(f"{path} has no {stage} entry {name!r}. Entries: {', '.join(section) or 'none'}.")
    return {"dataset": section[name].get("dataset")} if stage == "evaluate" else section[name]


def section_of(stage: str) -> str:
    """Returns the section whose entries a stage runs for."""
    return "train" if stage == "evaluate" else stage


def models(dataset: str, path: Path = PARAMS) -> list[str]:
    """Returns the names of the ``train`` entries that use ``dataset``, in the order of params.yaml."""
    return [name for name, entry in load(path)["train"].items() if entry.get("dataset") == dataset]


def changed(sections: dict[str, Any], changes: Mapping[Place, Any]) -> dict[str, Any]:
    """Returns the sections with other values at some places."""
    for place, value in changes.items():
        sections = _replaced(sections, place, value)
    return sections


def _replaced(mapping: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    first, *rest = place
    return mapping | {first: _replaced(mapping.get(first, {}), tuple(rest), value) if rest else value}


def write(changes: Mapping[Place, Any], source: Path = PARAMS, target: Path | None = None) -> None:
    """Writes the file with other values at some places, in the form that it has: comments, order and quotes stay.

    A key that is not there yet comes before the last of its mapping: what follows the last one - an empty line, a
    comment - belongs to the next entry.

    Args:
        changes: place -> value; the entry has to be there.
        source: the file.
        target: where to write; by default in place of the file, at once.

    Raises:
        ConfigurationError: the file would not say just that, since some of its entries share what they say (&, *).
    """
    target = (target or source).resolve()
    text = source.read_text(encoding="utf-8")
    expected = changed(load(source), changes)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 2**16
    content, indent, offset = load_yaml_guess_indent(text, yaml=yaml)
    if offset is not None:
        yaml.indent(mapping=indent, sequence=offset + 2, offset=offset)
    elif indent is not None:
        yaml.indent(mapping=indent)
    for place, value in changes.items():
        _put(content, place, value)
    written = io.StringIO()
    yaml.dump(content, written)
    with files.replacement(target) as partial:
        partial.write_text(written.getvalue(), encoding="utf-8")
        if load(partial) != expected:
            places = ", ".join(".".join(place) for place in changes)
            raise ConfigurationError(f"{source}: {places} cannot be changed without changing more; do it by hand.")
        shutil.copymode(source, partial)


def _put(mapping: CommentedMap, place: Place, value: Any) -> None:
    first, *rest = place
    if first not in mapping:
        mapping.insert(max(0, len(mapping) - 1), first, _in_line({}))
    if rest:
        _put(mapping[first], tuple(rest), value)
    else:
        mapping[first] = _in_line(value)


def _in_line(value: Any) -> Any:
    """Returns a list or mapping that is written in one line."""
    if isinstance(value, list | dict):
        value = CommentedSeq(map(_in_line, value)) if isinstance(value, list) else CommentedMap(value)
        value.fa.set_flow_style()
    return value
