"""Well-known data sets, by name: catalogue.yaml beside this file."""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ruamel.yaml import YAML

from stages.fetch.addresses import File


class Entry(BaseModel):
    """A data set of the catalogue.

    Attributes:
        what: task, number of examples, classes.
        licence: as its publisher states it.
        size: of all files together.
        page: where it is described.
        reading: what ingest has to know of the files.
        files: what is downloaded.
    """

    model_config = ConfigDict(extra="forbid")

    what: str
    licence: str
    size: str
    page: str
    reading: str
    files: list[File]


@cache
def entries() -> dict[str, Entry]:
    """Returns the data sets of the catalogue, by name."""
    text = Path(__file__).with_name("catalogue.yaml").read_text("utf-8")
    return {name: Entry.model_validate(entry) for name, entry in YAML(typ="safe", pure=True).load(text).items()}
