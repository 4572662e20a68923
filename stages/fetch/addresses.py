"""Addresses of files to download, as params.yaml and the catalogue write them."""

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convoy.checksums import SUMS, is_ignored
from convoy.errors import ConfigurationError
from convoy.secrets import is_secret, masked

SIGNED = ("x-amz-", "x-goog-")  # of addresses that a store signed for some hours
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SCHEMES = ("http", "https", "s3", "gs", "ssh", "sftp", "file")


class File(BaseModel):
    """One file to download; in params.yaml a mapping with these keys, or the address alone.

    Attributes:
        url: http, https, s3, gs, ssh, sftp or file. ``${NAME}`` in it stands for that variable of the environment:
            what params.yaml says is in dvc.lock and in git too, so a secret itself is refused.
        sha256: the file's, if its publisher states it.
        md5: where only that is published. It finds damage, but not a forgery.
        name: relative path inside data/raw/<dataset>; the last part of the address if not given.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(repr=False)  # may hold a password, which is refused
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None
    name: str = Field(default="", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _accept_an_address_alone(cls, entry: Any) -> Any:
        return {"url": entry} if isinstance(entry, str) else entry

    @property
    def address(self) -> str:
        """The url with what the environment says.

        Raises:
            ConfigurationError: it names a variable that is not set.
        """

        def said(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise ConfigurationError(f"{masked(self.url)}: {match[0]} is not set in the environment.")
            return os.environ[match[1]]

        return VARIABLE.sub(said, self.url)

    @property
    def target(self) -> str:
        """Relative path inside data/raw/<dataset>; "" where the address ends with a slash and no name was given."""
        path = urlsplit(self.url).path
        # Only the web quotes the characters of an address; an object's key is what it is.
        return self.name or PurePosixPath(unquote(path) if self.is_web else path).name * (not path.endswith("/"))

    @property
    def is_web(self) -> bool:
        """Whether it is http or https."""
        return urlsplit(self.url).scheme.lower() in ("http", "https")


def check_files(where: str, files: Sequence[File]) -> None:
    """Raises a ConfigurationError for an address that cannot be fetched, or names that are in each other's way."""
    if not files:
        raise ConfigurationError(f"{where}: urls is empty; give at least one address.")
    names: dict[str, str] = {}
    for number, file in enumerate(files):
        key, shown = f"{where}: urls[{number}]", masked(file.url)
        try:
            parts = urlsplit(file.url)
        except ValueError as error:
            raise ConfigurationError(f"{key} is no address: {error}.") from None
        if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", file.url):
            raise ConfigurationError(
                f"{key} has no scheme ({', '.join(SCHEMES)}). A local file or folder is given as `path`."
            )
        if parts.scheme.lower() not in SCHEMES:
            raise ConfigurationError(f"{key}, {shown}: unknown scheme. Schemes: {', '.join(SCHEMES)}.")
        if parts.scheme.lower() == "file" and parts.netloc not in ("", "localhost"):
            raise ConfigurationError(
                f"{key}, {shown}: a file's address has three slashes and is absolute, file:///a/b."
            )
        if parts.scheme.lower() != "file" and not parts.netloc.rpartition("@")[2]:
            raise ConfigurationError(f"{key}, {shown}: no host (or bucket) in it.")
        if secret := _secret(file):
            raise ConfigurationError(
                f"{key}, {shown}: it has {secret}, which dvc.lock and git would keep. Write ${{NAME}} for it, and set "
                "NAME in the environment; of http and https ~/.netrc has logins too."
            )
        name = file.target
        if not name or VARIABLE.search(name):
            raise ConfigurationError(f"{key}, {shown} ends without a file name; give one: {{url: ..., name: ...}}.")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or not name.isprintable() or "\\" in name:
            raise ConfigurationError(f"{key}: name {name!r} is not a plain relative path, such as train/images.gz.")
        if name == SUMS or any(map(is_ignored, path.parts)):
            raise ConfigurationError(f"{key}: {name} cannot be the name of a data file; give another as `name`.")
        folded = name.casefold()  # some file systems do not tell A from a
        for other, its in names.items():
            if folded == other or folded.startswith(f"{other}/") or other.startswith(f"{folded}/"):
                raise ConfigurationError(f"{key} and {its} are both written to {name}; give one another `name`.")
        names[folded] = f"urls[{number}]"


def _secret(file: File) -> str:
    """Returns what of an address nobody else should know, in words; "" if nothing, or if the environment has it."""
    parts = urlsplit(file.url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    if VARIABLE.sub("", password) or (file.is_web and not password and VARIABLE.sub("", user)):
        return "a login"  # of the web a user alone is a token as a rule, of ssh it is a name
    for name, value in parse_qsl(parts.query):
        if VARIABLE.sub("", value) and (is_secret(name) or name.lower().startswith(SIGNED)):
            return f"a secret by its name, {name}"
    return ""
