"""The search of a model: reads it from params.yaml, and knows what its results depend on."""

import hashlib
import json
from pathlib import Path

from convoy import params
from convoy.checksums import sha256
from convoy.data.shards import INDEX
from convoy.errors import ConfigurationError
from convoy.schema import prepare
from stages.search_space import Search
from stages.train.train import code

FOLDER = Path("data/tune")


def read(model: str, trials: int | None = None, minutes: float | None = None) -> Search:
    """Returns the search of ``model`` in params.yaml, with other budgets if some are given.

    Raises:
        ConfigurationError: there is none, or something about it is wrong.
    """
    entries = params.load()[params.TUNE]
    if model not in entries:
        raise ConfigurationError(
            f"params.yaml has no tune entry {model!r}. Entries: {', '.join(entries) or 'none'}. One has ranges for "
            "keys of the train entry: see README.md, Search."
        )
    given = {key: value for key, value in (("trials", trials), ("minutes", minutes)) if value is not None}
    function, arguments = prepare("tune", model, entries[model] | given)
    return function(model, **arguments)


def has_same_basis(one: Search, other: Search) -> bool:
    """Returns whether the values that ``one`` found may be written for ``other``: they differ in their budget only."""
    return all(getattr(one, name) == getattr(other, name) for name in ("own", "ranges", "places", "train", "augment"))


def identify(search: Search) -> str:
    """Returns a name for all searches whose trials of equal values have equal results: the model and a hash."""
    places = set(search.places.values())
    fixed = {key: value for key, value in search.train.items() if ("train", search.model, key) not in places}
    sizes = ("train", search.model, "sizes")
    fixed["sizes"] = {key: value for key, value in fixed["sizes"].items() if (*sizes, key) not in places}
    facts = [{name: repr(one) for name, one in search.ranges.items()}, fixed, search.seed, checksum_inputs(search)]
    if search.augments:
        facts.append({k: v for k, v in search.augment.items() if ("augment", search.dataset, k) not in places})
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return f"{search.model}-{digest[:12]}"


def checksum_inputs(search: Search) -> dict[str, str]:
    """Returns the data and the code that trials read: path -> SHA-256."""
    return {str(path): sha256(path) for path in _data(search)} | code(search.train["architecture"])


def check_data(search: Search) -> None:
    """Raises ConfigurationError if the data set was not made yet; names the stage that makes it."""
    for path in _data(search):
        if not path.exists():
            raise ConfigurationError(f"{path} is not there. `dvc repro {path.parts[1]}@{search.dataset}` makes it.")


def _data(search: Search) -> tuple[Path, ...]:
    """Returns the files that identify the data; about.json has the vocabulary of texts."""
    trained = Path("data", "ingest" if search.augments else "augment", search.dataset)
    return Path("data/ingest", search.dataset, "val", INDEX), trained / "train" / INDEX, trained / "about.json"
