"""Entries of params.yaml: what their classes share, and how an entry is checked against its class."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convoy.errors import ConfigurationError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # a share, but not all


class Entry(BaseModel):
    """An entry of one section of params.yaml: its fields are the keys, and nothing else is one.

    A subclass has the name of its section: ``Train`` for ``train:``. The text below a field is what editors show.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the keys of an entry with those that follow from them; here none do."""
        return given

    def check(self, where: str, name: str) -> None:
        """Raises what the stage would raise for this entry before any work: what types alone cannot say.

        Args:
            where: begins the message.
            name: of the entry.

        Raises:
            StageError: says what came in and what is allowed.
        """


AnEntry = TypeVar("AnEntry", bound=Entry)


def checked(model: type[AnEntry], name: str, given: Mapping[str, Any]) -> AnEntry:
    """Returns an entry of params.yaml as its class.

    Args:
        model: the class.
        name: of the entry.
        given: its keys and values.

    Raises:
        ConfigurationError: names what is wrong, and what is allowed there.
    """
    where = f"params.yaml, {model.__name__.lower()}.{name}"
    try:
        entry = model.model_validate(model.completed(given))
    except ValidationError as error:
        said, keys = "; ".join(map(_describe, error.errors())), ", ".join(model.model_fields)
        raise ConfigurationError(f"{where}: {said}. Keys: {keys}.") from None
    entry.check(where, name)
    return entry


def _describe(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}"
        case "missing":
            return f"the key {key!r} is missing"
        case _:
            return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
