"""What ``tune:`` of params.yaml says: the ranges in which a search looks for the values of an entry.

``{low: 1e-4, high: 1e-2, log: true}`` are all numbers between, whole ones if both ends are; ``{low: 32, high: 256,
step: 32}`` some of them; ``[32, 64, 128]`` one of these; and ``[{low: 4, high: 16}, {low: 8, high: 48}]`` lists, with a
range for each element.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import Field

from convoy import kinds, params
from convoy.errors import ConfigurationError
from convoy.params import Place
from convoy.schema import Above, Entry, Positive, Seed, checked
from stages.augment.entry import Augment
from stages.train.entry import READING, Train
from stages.train.signatures import default_sizes

Ranges = dict[str, Any]

# Of train, what no search changes, and why.
FIXED = {
    "dataset": "other data is another task",
    "architecture": "each has sizes of its own; give each a search",
    "epochs": "they are the budget of a trial",
    "devices": "they are what a trial runs on",
    "seed": "a lucky seed is no better model",
}
# What changes the meaning of a translation's val_loss: its tokens, and the distribution that they are compared with.
MEASURES = ("label_smoothing", "subwords", *READING)


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``; whole ones if both are.

    Attributes:
        low: the least.
        high: the greatest.
        log: each factor is as likely as another, rather than each difference.
        step: only ``low``, ``low + step``, ...
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Says whether all of them are whole numbers."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Returns what stands for all, to be tried on the schema: of numbers with fractions also one of these."""
        between = () if self.whole else (self.low + (self.step or (self.high - self.low) / 3),)
        return self.low, self.high, *between

    def has(self, value: Any) -> bool:
        """Says whether ``value`` is one of them."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        return not (self.step or self.whole) or math.isclose(steps, round(steps), abs_tol=1e-9)

    def __str__(self) -> str:
        by = f" by {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{by}{' (log)' if self.log else ''}"


class OutsideError(ConfigurationError):
    """The value that an entry has is not in its range: no search can begin, but everything else can."""


@dataclass(frozen=True)
class Choice:
    """One of several values, whatever they are.

    Attributes:
        values: all of them.
    """

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Returns all of them."""
        return self.values

    @property
    def labels(self) -> list[str]:
        """Returns the values as texts, which a store can keep."""
        return [json.dumps(value) for value in self.values]

    def has(self, value: Any) -> bool:
        """Says whether ``value`` is one of them."""
        return any(_same(value, one) for one in self.values)

    def __str__(self) -> str:
        return " | ".join(self.labels)


@dataclass(frozen=True)
class Search:
    """A search, checked.

    Attributes:
        model: the entry of train whose values are looked for.
        dataset: that it learns.
        objective: column of the history that says how good a trial is.
        ranges: name of a value, as ``learning_rate``, ``sizes.maps.0``, ``augment.shift`` -> where to look for it.
        own: name -> the value that the entry has, or its architecture's or class's default.
        places: name -> where it stands in params.yaml; the elements of a list have one place.
        train: the entry.
        augment: that of the data set.
        trials: how many there are to be.
        minutes: after which none begins.
        seed: of what is tried.
    """

    model: str
    dataset: str
    objective: str
    ranges: dict[str, Interval | Choice]
    own: dict[str, Any]
    places: dict[str, Place]
    train: Train
    augment: Augment
    trials: int
    minutes: float | None
    seed: int

    @property
    def augments(self) -> bool:
        """Says whether the augmentation is searched too."""
        return any(place[0] == "augment" for place in self.places.values())

    @property
    def smaller(self) -> bool:
        """Says whether a smaller value of the objective is better."""
        return self.objective.endswith("loss")

    def signed(self, value: float) -> float:
        """Returns what is the smaller, the better ``value`` of the objective is."""
        return value if self.smaller else -value

    def changes(self, values: Mapping[str, Any]) -> dict[Place, Any]:
        """Returns what params.yaml has to say for the entries to have ``values``, where it differs from ``own``."""
        ours, wanted = self._at_places(self.own), self._at_places(values)
        return {place: value for place, value in wanted.items() if not _same(value, ours[place])}

    def _at_places(self, values: Mapping[str, Any]) -> dict[Place, Any]:
        found: dict[Place, Any] = {}
        for name, place in self.places.items():
            if name.rpartition(".")[2].isdecimal():
                found.setdefault(place, []).append(values[name])
            else:
                found[place] = values[name]
        return found


class Tune(Entry):
    """A search: where to look for better values of the model of the same name, and how long."""

    train: Ranges = Field({})
    """Keys of the model's entry -> ranges."""
    sizes: Ranges = Field({})
    """Sizes of its architecture -> ranges."""
    augment: Ranges = Field({})
    """Keys of the augmentation of its data set -> ranges."""
    trials: Positive = 30
    """Trainings, with those that end early and the first, which has the values that the entry has."""
    minutes: Above | None = None
    """After so many no trial begins."""
    seed: Seed = 0
    """Of what is tried."""


def define(model: str, entry: Tune) -> Search:
    """Returns the search that an entry of ``tune:`` describes, every end of its ranges checked as an entry would be.

    Args:
        model: name of the entry, which is that of an entry of train.
        entry: the entry.

    Raises:
        ConfigurationError: a name or range is not valid; or the value that the entry has is not in its range.
    """
    sections, where = params.load(), f"params.yaml, tune.{model}"
    if model not in sections["train"]:
        raise ConfigurationError(f"{where}: train has no model {model!r}. It has: {', '.join(sections['train'])}.")
    trained = checked(Train, model, sections["train"][model])
    dataset = trained.dataset
    kind = kinds.get(sections["ingest"][dataset]["kind"])
    changes = checked(Augment, dataset, sections["augment"][dataset])
    options = ["copies", *import_module(f"stages.augment.{kind.name}").OPTIONS]
    if kind.is_text and kind.has_classes:
        options.append("subwords")
    places: dict[str, tuple[Place, Ranges, dict[str, Any]]] = {
        "": (("train", model), entry.train, trained.model_dump(exclude={"sizes"})),
        "sizes.": (("train", model, "sizes"), entry.sizes, default_sizes(trained.architecture) | trained.sizes),
        "augment.": (("augment", dataset), entry.augment, changes.model_dump(include=set(options))),
    }
    search = Search(
        model=model, dataset=dataset, objective=kind.objective, ranges={}, own={}, places={},
        train=trained, augment=changes, trials=entry.trials, minutes=entry.minutes, seed=entry.seed,
    )  # fmt: skip
    for prefix, (place, asked, known) in places.items():
        for key, range_ in asked.items():
            _check_name(f"{where}: {prefix}{key}", key, known, None if prefix.startswith("sizes") else kind)
            own = _plain(known[key])
            for name, one, value in _each(f"{where}: {prefix}{key}", f"{prefix}{key}", range_, own):
                search.ranges[name], search.own[name], search.places[name] = one, value, (*place, key)
    if not search.ranges:
        raise ConfigurationError(f"{where}: there is no range. Give some under train, sizes or augment.")
    for name, one in search.ranges.items():
        for value in one.ends:
            _try(f"{where}: {name} = {value!r}", search, search.own | {name: value}, sections, kind.name)
    return search


def _check_name(where: str, key: str, known: Mapping[str, Any], kind: kinds.Kind | None) -> None:
    """Raises ConfigurationError for a key that does not exist, or that no search changes.

    Args:
        where: begins the message.
        key: to look for.
        known: the keys that exist.
        kind: of data; None: the key is a size of an architecture, and each may change.
    """
    if key not in known:
        raise ConfigurationError(f"{where} is no key. Keys: {', '.join(name for name in known if name not in FIXED)}.")
    if kind is None:
        return
    if key in FIXED:
        raise ConfigurationError(f"{where} cannot be tuned: {FIXED[key]}.")
    if not kind.has_classes and key in MEASURES:
        raise ConfigurationError(f"{where} cannot be tuned: it changes what {kind.objective} means.")


def _each(where: str, name: str, asked: Any, own: Any) -> list[tuple[str, Interval | Choice, Any]]:
    """Returns (name, range, value of the entry), once or for each element of a list."""
    if isinstance(asked, list) and asked and all(isinstance(one, dict) for one in asked):
        if not isinstance(own, list) or len(own) != len(asked):
            raise ConfigurationError(f"{where} has ranges for {len(asked)} elements, and the entry's value is {own}.")
        return [
            (f"{name}.{number}", _range(f"{where}.{number}", one, value), value)
            for number, (one, value) in enumerate(zip(asked, own, strict=True))
        ]
    found = _range(where, asked, own)
    if isinstance(found, Choice):  # as it is written there: 0, where the entry's is 0.0
        own = next(one for one in found.values if _same(own, one))
    return [(name, found, own)]


def _range(where: str, asked: Any, own: Any) -> Interval | Choice:
    if isinstance(asked, list):
        found: Interval | Choice = Choice(tuple(asked))
        if len(set(found.labels)) < max(2, len(asked)):
            raise ConfigurationError(f"{where} = {asked}: at least two different values are needed, each once.")
    elif isinstance(asked, dict) and {"low", "high"} <= set(asked) <= {"low", "high", "log", "step"}:
        found = Interval(**asked)
        numbers = [found.low, found.high, *([] if found.step is None else [found.step])]
        if not all(
            isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers
        ):
            raise ConfigurationError(f"{where} = {asked}: low, high and step are numbers.")
        if not found.low < found.high or not isinstance(found.log, bool):
            raise ConfigurationError(f"{where} = {asked}: low is below high, and log true or false.")
        if found.log and (found.low <= 0 or found.step is not None):
            raise ConfigurationError(f"{where} = {asked}: with log, low is above 0 and there is no step.")
        if found.step is not None and (found.step <= 0 or not found.has(found.high)):
            raise ConfigurationError(f"{where} = {asked}: high is a whole number of steps above low.")
    else:
        raise ConfigurationError(
            f"{where} = {asked!r} is no range. Ranges: {{low: 1e-4, high: 1e-2, log: true}}, {{low: 32, high: 256, "
            "step: 32}, [some, values], or a list of ranges, one for each element."
        )
    if not found.has(own):
        raise OutsideError(
            f"{where} = {asked}: {json.dumps(own)}, which the entry has, is not in it. It is the first that is tried."
        )
    return found


def _try(where: str, search: Search, values: Mapping[str, Any], sections: dict[str, Any], kind: str) -> None:
    """Raises ConfigurationError where an entry of such values would be refused."""
    changed = params.changed(sections, search.changes(values))
    try:
        entry = checked(Train, search.model, changed["train"][search.model])
        entry.check_kind(f"params.yaml, train.{search.model}", kind)
        checked(Augment, search.dataset, changed["augment"][search.dataset])
    except ConfigurationError as error:
        raise ConfigurationError(f"{where} is not valid: {error}") from None


def _plain(value: Any) -> Any:
    """Returns a value as params.yaml would have it."""
    return json.loads(json.dumps(value, default=str))


def _same(one: Any, other: Any) -> bool:
    """Says whether two values are equal; True is not 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
