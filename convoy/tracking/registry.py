"""The registry: models that are stored, their versions, and which of them is champion."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from convoy.checksums import sha256
from convoy.errors import ConfigurationError, IntegrityError
from convoy.model import safe_load

if TYPE_CHECKING:
    import keras
    import pandas as pd
from convoy.tracking.shipping import PATCH
from convoy.tracking.store import GONE, REFUSED, connect, place, transferring

CHAMPION = "champion"
TAKES = "input.json"
STORED = "stored_sha256"  # tag of a version: the fingerprint of its files
LOADED = "registered_model_meta"  # what MLflow adds to them
OURS = ("model", "model_sha256")  # tags of every version that register made


def log_model(
    name: str,
    folder: Path,
    loader: str,
    code: list[Path],
    inputs: dict[str, str],
    outputs: dict[str, str],
    example: "pd.DataFrame",
    libraries: Iterable[str],
) -> str:
    """Stores a servable model with the open run and returns its address; flavor ``python_function``.

    Args:
        name: what the browser calls it.
        folder: what the model is loaded from; ``model.keras`` and ``input.json`` among it.
        loader: module whose ``_load_pyfunc(folder)`` gives the object that predicts.
        code: packages that it needs; stored with the model, and first on the path where that is served.
        inputs: column -> MLflow's name of its type; the model's signature.
        outputs: the same of what it answers; ``map`` is class -> probability.
        example: a row that it can be asked.
        libraries: that it needs, in the versions that are installed.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import DataType, Map

    def schema(columns: dict[str, str]) -> Schema:
        return Schema(
            [ColSpec(Map(DataType.double) if kind == "map" else kind, name) for name, kind in columns.items()]
        )

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)

    def save_model(validate_serving_input: bool, **settings: Any) -> None:
        mlflow.pyfunc.save_model(**settings)

    with transferring():
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=SimpleNamespace(__name__="mlflow.pyfunc", save_model=save_model),
            data_path=str(folder),
            loader_module=loader,
            code_paths=[str(package) for package in code],
            validate_serving_input=False,  # register does it, in a fresh process; here it would import Keras
            signature=ModelSignature(schema(inputs), schema(outputs)),
            input_example=example,
            pip_requirements=[f"{library}=={version(library)}" for library in libraries],
        )
    return info.model_uri


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Yields a copy of the files of a stored model in a folder that only this user can read; it goes with the context.

    What is checked has to be what is loaded, so both have to look at files that nobody else writes.

    Raises:
        IntegrityError: the store does not have them any more.
    """
    connect()
    with tempfile.TemporaryDirectory(prefix="convoy-") as scratch:
        try:
            with transferring():
                folder = Path(mlflow.artifacts.download_artifacts(address, dst_path=scratch))
            for compiled in [*folder.rglob("__pycache__")]:  # Python would run it in place of the code that was checked
                shutil.rmtree(compiled)
            empty = not any(folder.iterdir())
        except (MlflowException, OSError) as error:
            if not _are_gone(error):
                raise
            empty = True
        if empty:
            raise IntegrityError(f"the files of {address} are gone from {place()}")
        yield folder


def _are_gone(error: Exception) -> bool:
    """Whether this is how a store says that it does not have some files: a server, a folder, or its database."""
    if isinstance(error, MlflowException):
        return error.error_code == GONE or "No such artifact" in str(error)
    response = getattr(error, "response", None)
    return isinstance(error, FileNotFoundError) or (response is not None and response.status_code == 404)


def fingerprint(folder: Path) -> str:
    """Returns a SHA-256 of the paths and contents of all files of a stored model, as ``fetched`` yields them."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    lines = [f"{sha256(files[path])}  {path.as_posix()}" for path in sorted(files) if path != Path(LOADED)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def checked(registered: ModelVersion) -> Iterator[Path]:
    """Yields a private copy of the files of a version, which are those that were registered; older ones do not tell.

    Raises:
        IntegrityError: they are not; the message names another version that is whole.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(fetched(registered.source))
            problem = "" if _is_as_registered(registered, folder) else "are not those that were registered"
        except IntegrityError:
            problem = f"are gone from {place()}"
        if not problem:
            yield folder
            return
    name, number = registered.name, registered.version
    others = [one for one in connect().search_model_versions(f"name = '{name}'") if STORED in one.tags]
    others.sort(key=lambda one: int(one.version), reverse=True)
    whole = next((one for one in others if str(one.version) != str(number) and is_whole(one)), None)
    raise IntegrityError(
        f"the files of {name} version {number}, {registered.source}, {problem}; they are not loaded. "
        + (
            f"Version {whole.version} is whole: convoy rollback {name}@{whole.version} --reason ..."
            if whole
            else f"No other version is whole; convoy rebuild {name}@{number} trains it once more, where its "
            f"lineage.json is left, and dvc repro --force --single-item register@{name} stores the best model of today."
        )
    )


def is_whole(registered: ModelVersion) -> bool:
    """Whether the store has the files of a version as they were registered; of older ones, whether it has any."""
    try:
        with fetched(registered.source) as folder:
            return _is_as_registered(registered, folder)
    except IntegrityError:
        return False


def _is_as_registered(registered: ModelVersion, folder: Path) -> bool:
    known = registered.tags.get(STORED)
    return known is None or fingerprint(folder) == known


def is_ours(registered: ModelVersion) -> bool:
    """Whether ``register`` made a version; an alias can be given to those of other tools too."""
    return all(tag in registered.tags for tag in OURS)


def load_model(registered: ModelVersion) -> tuple["keras.Model", dict[str, Any] | None]:
    """Loads the network of a version, and what it takes; None: it was stored before that went with it.

    Raises:
        IntegrityError: see ``checked``.
        InputRefusedError: see ``networks.check``.
    """
    with checked(registered) as folder:
        [network] = folder.rglob("model.keras")
        takes = next(folder.rglob(TAKES), None)
        return (
            safe_load.load(network),
            None if takes is None else json.loads(takes.read_text(encoding="utf-8")),
        )


def version_with(dataset: str, tag: str, value: str) -> ModelVersion | None:
    """Returns the newest version of the registered model ``dataset`` that has a tag of the given value."""
    found = connect().search_model_versions(f"name = '{dataset}' and tags.`{tag}` = '{value}'")
    return max(found, key=lambda one: int(one.version), default=None)


def add_version(dataset: str, address: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    """Registers the model stored at ``address`` as a new version of ``dataset``."""
    client = connect()
    try:
        client.create_registered_model(dataset)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(dataset, address, run_id, tags=tags, model_id=address.rsplit("/", 1)[-1])


def describe_version(registered: ModelVersion, tags: dict[str, str]) -> None:
    """Renews tags of a registered version."""
    client = connect()
    for key, value in tags.items():
        client.set_model_version_tag(registered.name, registered.version, key, value)


def describe(dataset: str, about: str, registered: ModelVersion, text: str) -> None:
    """Renews what the registry says about a data set, and in Markdown about one version."""
    client = connect()
    client.update_registered_model(dataset, about)
    client.update_model_version(registered.name, registered.version, text)


def needed_champion(dataset: str) -> ModelVersion:
    """Returns the champion of ``dataset``, which ``register`` made.

    Raises:
        ConfigurationError: there is none, or another tool made it.
    """
    found = champion(dataset)
    if found is None:
        raise ConfigurationError(f"{place()} has no champion of {dataset!r}: register one first (make repro).")
    if not is_ours(found):
        raise ConfigurationError(foreign(found))
    return found


def foreign(registered: ModelVersion) -> str:
    """Returns why a version of another tool cannot be used, and the way out."""
    name = registered.name
    ours = [one for one in connect().search_model_versions(f"name = '{name}'") if is_ours(one)]
    newest = max(ours, key=lambda one: int(one.version), default=None)
    return (
        f"version {registered.version} of {name} was not registered by convoy, so it is not known what it takes. "
        + (
            f"To make version {newest.version} ({newest.tags['model']}) the champion: "
            f"convoy rollback {name}@{newest.version} --reason ..."
            if newest
            else f"No version of {name} was: take the alias off, and register one (make repro)."
        )
    )


def champion(dataset: str) -> ModelVersion | None:
    """Returns the version of ``dataset`` that has the alias ``champion``."""
    try:
        return connect().get_model_version_by_alias(dataset, CHAMPION)
    except MlflowException as error:
        # The second is what an alias that nobody has is answered with; anything else is no "there is none".
        missing = error.error_code == REFUSED and "alias" in str(error)
        if missing or error.error_code == GONE:
            return None
        raise


def find_version(dataset: str, which: str) -> ModelVersion:
    """Returns a version of ``dataset`` by its number or an alias.

    Raises:
        ConfigurationError: there is none; the message names those that exist.
    """
    client = connect()
    versions = client.search_model_versions(f"name = '{dataset}'")
    aliases = client.get_registered_model(dataset).aliases if versions else {}
    number = str(aliases.get(which, which))
    for one in versions:
        if str(one.version) == number:
            return client.get_model_version(dataset, number)  # which, unlike the list, has its aliases
    known = sorted((int(one.version) for one in versions), reverse=True)
    raise ConfigurationError(
        f"{place()} has no {dataset}@{which}. Versions of {dataset}: {', '.join(map(str, known)) or 'none'}"
        f"{'; aliases: ' + ', '.join(f'{name} ({number})' for name, number in aliases.items()) if aliases else ''}."
    )


def text_of(registered: ModelVersion, name: str) -> str | None:
    """Returns a text file that lies beside the model of a version, or None.

    Raises:
        IntegrityError: the files of the version are gone.
    """
    with fetched(registered.source) as folder:
        return next((file.read_text(encoding="utf-8") for file in folder.rglob(name)), None)


def run_of(registered: ModelVersion) -> dict[str, Any]:
    """Returns ``run_id``, ``tags`` and ``patch`` (what was not committed) of the run that trained a version."""
    client = connect()
    run = client.get_run(registered.run_id)
    patch = ""
    if any(one.path == PATCH for one in client.list_artifacts(registered.run_id)):
        patch = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{PATCH}")
    return {"run_id": registered.run_id, "tags": run.data.tags, "patch": patch}


def forget_tag(registered: ModelVersion, key: str) -> None:
    """Takes a tag off a registered version, if it has it."""
    if key in registered.tags:
        connect().delete_model_version_tag(registered.name, registered.version, key)


def promote(registered: ModelVersion) -> None:
    """Gives a version the alias ``champion``; whoever had it loses it."""
    connect().set_registered_model_alias(registered.name, CHAMPION, registered.version)
