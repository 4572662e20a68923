"""What an entry of ``fetch:`` in params.yaml says."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field, WithJsonSchema

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.schema import Above, Entry
from convoy.secrets import masked
from stages.fetch.addresses import File, check_files
from stages.fetch.catalogue import entries
from stages.fetch.samples import SAMPLES

GIB = 2**30

Urls = Annotated[
    list[File],
    BeforeValidator(
        lambda value: value if isinstance(value, list) else [value],
        json_schema_input_type=list[File | str] | File | str,
    ),
]
Bytes = Annotated[
    ByteSize,
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string", "examples": ["50 GB"]}]}),
]


class Fetch(Entry):
    """Where raw data is from: exactly one of ``sample``, ``path``, ``urls`` and ``catalogue``."""

    sample: str | None = None
    """An embedded sample, made without network."""
    path: Path | None = None
    """A local folder, file or archive. A folder is synchronised: files of unchanged size and time stay as they are,
    others are copied, missing ones taken away. If it has a ``SHA256SUMS``, its files must agree with it. DVC does not
    watch the source: after a change there, ``dvc repro --force --single-item fetch@NAME``."""
    urls: Urls | None = None
    """Addresses, or mappings {url, sha256, md5, name} with a checksum to hold the file against and a relative path to
    write it to. http, https, s3, gs, ssh, sftp, file; see ``web.py`` and ``stores.py`` for logins."""
    catalogue: str | None = None
    """A well-known data set of catalogue.yaml."""
    max_bytes: Bytes = ByteSize(20 * GIB)
    """Largest size of one download, in bytes or such as 50 GB."""
    timeout: Above = 60.0
    """Seconds in which the next MiB of a download has to arrive. So it bounds a silence, and a file of n MiB takes n
    times that at most."""

    def check(self, where: str, name: str) -> None:
        """Checks the source of a data set that is not there yet: what was fetched does not need it any more."""
        if not Path("data/raw", name).exists():
            self.check_source(where, name)

    def check_source(self, where: str, dataset: str) -> None:
        """Raises what ``fetch`` would raise for this entry, before any work and without network."""
        sources: dict[str, Any] = {key: getattr(self, key) for key in ("sample", "path", "urls", "catalogue")}
        given = [key for key, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"{where}: give one of sample ({', '.join(SAMPLES)}), path, urls or catalogue "
                f"({', '.join(entries())}); got {' and '.join(given) or 'none'}."
            )
        if self.sample is not None and self.sample not in SAMPLES:
            raise ConfigurationError(f"{where}: unknown sample {self.sample!r}. Samples: {', '.join(SAMPLES)}.")
        if self.catalogue is not None and self.catalogue not in entries():
            raise ConfigurationError(
                f"{where}: {self.catalogue!r} is not in the catalogue. It has: {', '.join(entries())}."
            )
        if self.urls is not None:
            check_files(where, self.urls)
        if self.path is not None:
            _check_path(where, dataset, self.path)


def _check_path(where: str, dataset: str, path: Path) -> None:
    address = re.match(r"([a-z][a-z0-9+]+):/(.*)", str(path))  # of two slashes Path keeps one
    if address:
        raise ConfigurationError(
            f"{where}: path is for a local folder or file; give {masked('://'.join(address.groups()))} as `urls`."
        )
    try:
        here, target = path.expanduser().resolve(), Path("data/raw", dataset).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a link to itself, a NUL
        raise ConfigurationError(f"{where}: path {str(path)!r} is none: {error}") from None
    if here == target or here in target.parents or target in here.parents:
        raise ConfigurationError(
            f"{where}: path {path} and data/raw/{dataset}, where the copy goes, lie in each other. Data that is there "
            f"already needs no fetch entry but `dvc add data/raw/{dataset}`."
        )
    if not here.exists() or (here.is_dir() and not any(here.iterdir())):
        raise InputRefusedError(f"{where}: path {path} ({here}) does not exist or is empty.")
