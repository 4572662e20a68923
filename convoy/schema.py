"""An entry of params.yaml, checked: the signature of its function is its schema."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from convoy.errors import ConfigurationError


def prepare(stage: str, name: str, entry: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the function of a stage, or of ``tune``, and its checked keyword arguments.

    Raises:
        ConfigurationError: names what is wrong, and what is allowed there.
    """
    module = import_module("stages.search_space" if stage == "tune" else f"stages.{stage}.{stage}")
    function = getattr(module, stage)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    schema = create_model(
        stage,
        __config__=ConfigDict(extra="forbid", protected_namespaces=()),
        **{p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in keywords},
    )
    where = f"params.yaml, {stage}.{name}"
    if stage == "train":
        entry = module.preset(entry.get("architecture")) | entry
    try:
        checked = schema.model_validate(entry)
    except ValidationError as error:
        keys = ", ".join(p.name for p in keywords)
        raise ConfigurationError(f"{where}: {'; '.join(map(_say, error.errors()))}. Keys: {keys}.") from None
    arguments = {p.name: getattr(checked, p.name) for p in keywords}
    if stage == "ingest":
        module.check_options(where, **arguments)
    if stage == "train":
        module.check_sizes(where, checked.architecture, checked.sizes)
    if stage == "fetch" and not Path("data/raw", name).exists():  # what was fetched does not need its source any more
        module.check_source(where, dataset=name, **arguments)
    return function, arguments


def _say(error: dict[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}"
        case "missing":
            return f"the key {key!r} is missing"
        case _:
            return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
