"""Has the addresses in ``mlflow.db`` follow a checkout that was moved or copied, and looks for files that are gone.

MLflow writes absolute addresses of files into its database. The store of a checkout always keeps them in its
``mlartifacts``, so where the checkout is now says where they are. This file reads SQLite itself: ``check`` and
``doctor`` have no use for MLflow's seconds of start-up.
"""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from convoy.errors import ConfigurationError, ServiceError

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
ADDRESSES = (  # tables and columns in which MLflow keeps addresses of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
LOCATED = "SELECT name, artifact_location FROM experiments"
READ_SECONDS = 1.0  # of waiting for the database where somebody writes; MLflow, which is asked next, waits longer
LOCK_SECONDS = 30.0  # of waiting for another process that writes to the database


def is_used() -> bool:
    """Whether MLflow keeps what this checkout records in its own database, and not on a server or elsewhere."""
    return os.environ.get("MLFLOW_TRACKING_URI") in (None, "", f"sqlite:///{Path.cwd() / DATABASE}")


def follow(checkout: Path) -> None:
    """Changes the addresses in the database of ``checkout`` if it was moved or copied, and prints a line about it.

    Nothing changes where the former folder is this one under another name, or where the database is a link: another
    checkout has it then.

    Raises:
        ConfigurationError: it was copied without the files that the database names.
        ServiceError: the database cannot be written.
    """
    database = checkout / DATABASE
    # A database that is locked or damaged tells no address; MLflow, which is asked next, names the cause.
    with suppress(sqlite3.Error):
        for former in sorted(_former(_located(database), database, checkout)):
            _move(database, former, checkout)


def missing(checkout: Path) -> Iterator[str]:
    """Yields a sentence for each version with an alias whose files are not in the checkout any more."""
    query = (
        "SELECT name, version, group_concat(alias, ', '), storage_location FROM registered_model_aliases "
        "JOIN model_versions USING (name, version) GROUP BY name, version ORDER BY name, version"
    )
    found = []
    with suppress(sqlite3.Error):
        found = _read(checkout / DATABASE, query)
    for name, version, aliases, address in found:
        place = _path(address or "")
        if place is not None and not (place / "MLmodel").is_file():
            yield (
                f"the files of {name} version {version} ({aliases}) are gone from {place}. Copy them back, or store "
                f"the model again: dvc repro --force --single-item register@{name}"
            )


def is_same(address: str, folder: Path) -> bool:
    """Whether an address in the database leads to ``folder``, perhaps by another name of it."""
    place = _path(address)
    if place is None:
        return False
    if place == folder:
        return True
    return place.parts[-2:] == folder.parts[-2:] and _is_file(place.parents[1] / DATABASE, folder.parents[1] / DATABASE)


def _located(database: Path) -> list[tuple[str, str]]:
    """Returns the name of each experiment, and where its files are; nothing of a database of another checkout."""
    return [] if database.is_symlink() else _read(database, LOCATED)


def _former(located: list[tuple[str, str]], database: Path, checkout: Path) -> set[Path]:
    """Returns the checkouts, other than this one, whose ``mlartifacts`` hold files of experiments."""
    found = set()
    for name, address in located:
        place = _path(address or "")
        if place is not None and place.parts[-2:] == (ARTIFACTS, name):
            found.add(place.parents[1])
    return {one for one in found - {checkout} if not _is_file(one / DATABASE, database)}


def _is_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """Whether there is such a folder, and not in one that is closed to this user."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _move(database: Path, former: Path, checkout: Path) -> None:
    before, now = former / ARTIFACTS, checkout / ARTIFACTS
    if _is_folder(before) and not _is_folder(now):
        raise ConfigurationError(
            f"this checkout was copied from {former} without its {ARTIFACTS}, which {DATABASE} names. Copy that folder "
            f"too: cp -r {before} {now}; or remove {database} to begin an empty store."
        )
    try:
        with closing(sqlite3.connect(database, timeout=LOCK_SECONDS, isolation_level=None)) as opened:
            opened.execute("BEGIN IMMEDIATE")
            if former not in _former(opened.execute(LOCATED).fetchall(), database, checkout):
                return  # another process was quicker
            for old, new in ((former.as_uri(), checkout.as_uri()), (str(former), str(checkout))):
                for table, column in ADDRESSES:
                    opened.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
            opened.execute("COMMIT")
    except sqlite3.Error as error:
        raise ServiceError(
            f"this checkout was moved or copied from {former}, and the addresses in {database} cannot be changed: "
            f"{error}. Make it writable and run again."
        ) from error
    print(
        f"this checkout was moved or copied from {former}: the addresses in {DATABASE} are those of {checkout} now",
        file=sys.stderr,
    )


def _read(database: Path, query: str) -> list[tuple[Any, ...]]:
    if not database.exists():
        return []
    with closing(sqlite3.connect(database, timeout=READ_SECONDS)) as opened:
        return opened.execute(query).fetchall()


def _path(address: str) -> Path | None:
    """Returns the folder of a local address; None: it is on another machine."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None
