"""What DVC keeps: its outputs, the files that they consist of, and the stores that have them."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from dvc.config import RemoteConfigError
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils import dict_sha256
from dvc.utils.serialize import load_yaml
from dvc_data.hashfile.hash import file_md5, fobj_md5
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.fs.base import ObjectFileSystem
from dvc_objects.fs.errors import ConfigError, RemoteMissingDepsError
from dvc_objects.fs.local import LocalFileSystem

from convoy.errors import ConfigurationError, ServiceError
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.secrets import redacted

SHOWN = 20  # damages in one message; the rest is counted
MISSING = "is missing"
READ_AHEAD = 4 * 2**20  # bytes per request and thread; s3fs alone would hold 50 MiB for each


@dataclass(frozen=True)
class Output:
    """What dvc.lock or a .dvc file records of one path."""

    path: str  # from the root of the checkout
    stage: str  # ingest@digits; or the .dvc file
    info: HashInfo
    cached: bool
    pushed: bool
    files: dict[str, HashInfo] | None  # of a file: itself; of a folder: its listing, None where that is nowhere whole

    @cached_property
    def objects(self) -> dict[HashInfo, list[str]]:
        """The objects that it consists of, each with the paths it stands for."""
        objects = {self.info: [self.path]}
        for path, info in (self.files or {}).items():
            if info != self.info:
                objects.setdefault(info, []).append(path)
        return objects

    @property
    def again(self) -> str:
        """How to make it again."""
        if self.stage.endswith(".dvc"):
            return f"bring {self.path} back from where it came and `dvc add {self.path}`"
        return f"make it again with `dvc repro --force --single-item {self.stage}`"


@dataclass(frozen=True)
class Store:
    """A place of objects that are named by their hash: DVC's cache or a remote."""

    name: str
    odb: Any
    legacy: Any  # the same for objects of DVC 2
    threads: int

    @property
    def url(self) -> str:
        return redacted(self.odb.fs.unstrip_protocol(self.odb.path))

    @cached_property
    def exists(self) -> bool:
        """Whether there is such a place.

        Raises:
            ServiceError: it cannot be reached.
        """
        with self._reached():
            return self.odb.fs.exists(self.odb.path)

    def place(self, info: HashInfo) -> str:
        """Where an object lies: a path from here, or a URL."""
        odb = self._odb(info)
        path = odb.oid_to_path(info.value)
        if not isinstance(odb.fs, LocalFileSystem):
            return redacted(odb.fs.unstrip_protocol(path))
        return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path

    def problem(self, info: HashInfo) -> str | None:
        """Says what is wrong with an object after reading all of its bytes; None: it is whole."""
        odb = self._odb(info)
        local = isinstance(odb.fs, LocalFileSystem)
        options = {"block_size": READ_AHEAD} if isinstance(odb.fs, ObjectFileSystem) else {}
        try:
            with self._reached(), odb.fs.open(odb.oid_to_path(info.value), "rb", **options) as file:
                found = fobj_md5(file, name=info.name)
        except FileNotFoundError:
            return MISSING
        except OSError as error:
            if not local:
                raise
            return f"cannot be read ({error.strerror or error})"
        return None if found == info.as_raw().value else f"was altered: the md5 of its bytes is {found}"

    def listing(self, info: HashInfo) -> dict[str, HashInfo] | None:
        """Returns the members of a folder by their path in it; None where its listing is missing or altered."""
        if not self.exists or self.problem(info):
            return None
        odb = self._odb(info)
        with self._reached(), odb.fs.open(odb.oid_to_path(info.value), "rb") as file:
            tree = Tree.from_list(json.load(file), hash_name=info.name)
        return {"/".join(key): member for key, _, member in tree}

    def delete(self, info: HashInfo) -> None:
        with self._reached():
            self._odb(info).delete(info.value)

    def examine(self, infos: Iterable[HashInfo]) -> dict[HashInfo, str]:
        """Reads the given objects, several at a time; returns what is wrong with those that are not whole."""
        infos = list(infos)
        if not self.exists:
            return dict.fromkeys(infos, MISSING)
        with threads(self.threads) as pool:
            found = track(pool.map(self.problem, infos), self.name, "objects", len(infos))
            return {info: problem for info, problem in zip(infos, found, strict=True) if problem}

    def _odb(self, info: HashInfo) -> Any:
        return self.legacy if info.name == "md5-dos2unix" else self.odb

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns what the many libraries of remotes raise into one error; a missing object stays a FileNotFoundError."""
        try:
            yield
        except (FileNotFoundError, KeyboardInterrupt):
            raise
        except Exception as error:
            if isinstance(error, OSError) and isinstance(self.odb.fs, LocalFileSystem):
                raise
            if isinstance(error, RemoteMissingDepsError | ConfigError):
                raise ConfigurationError(f"{self.name}: {error}") from error
            raise ServiceError(
                f"{self.name} cannot be read: {type(error).__name__}: {error}. Check its settings (dvc config --list), "
                "its credentials and the network, then run this again."
            ) from error


@contextmanager
def open_repo(wait: bool = False) -> Iterator[Repo]:
    """Opens DVC's view of the checkout; its own errors here are about configuration.

    Args:
        wait: ``repo.lock`` waits for other processes as long as they have it.
    """
    try:
        with Repo(_wait_for_lock=wait) as repo:
            if Path(repo.root_dir) != Path.cwd():
                raise ConfigurationError(f"run this in {os.path.relpath(repo.root_dir)}, the root of the checkout.")
            yield repo
    except DvcException as error:
        raise ConfigurationError(f"DVC cannot read this checkout: {error}") from error


@contextmanager
def open_cache() -> Iterator[Callable[[str], bool]]:
    """Yields a function that tells whether DVC's cache has the object of a hash, as dvc.lock writes it."""
    with open_repo() as repo:
        yield repo.cache.local.exists


@contextmanager
def open_shared(remote: str | None) -> Iterator[tuple[Store, Store, list[Output]]]:
    """Opens the cache, a remote, and the outputs that are pushed to it."""
    with open_repo() as repo:
        cache, store = cache_of(repo), remote_of(repo, remote, needed=True)
        yield cache, store, [output for output in outputs_of(repo, cache, store, remote) if output.pushed]


def cache_of(repo: Repo) -> Store:
    """Returns DVC's cache of a checkout."""
    return Store("cache", repo.cache.local, repo.cache.legacy, cores())


def remote_of(repo: Repo, name: str | None, *, needed: bool = False) -> Store | None:
    """Returns a remote by its name, or the default one; None where there is no default and none is needed."""
    name = name or repo.config["core"].get("remote")
    known = ", ".join(repo.config["remote"]) or "none"
    if not name and not needed:
        return None
    if not name or name.lower() not in repo.config["remote"]:
        problem = f"there is no remote {name!r}" if name else "there is no default remote"
        raise ConfigurationError(f"{problem}. Remotes: {known}. Add one with `dvc remote add --default NAME URL`.")
    try:
        remote = repo.cloud.get_remote(name)
        if remote.worktree or remote.fs.version_aware:
            raise ConfigurationError(
                f"remote {name}: with version_aware or worktree its objects are not named by their hash, so they "
                "cannot be checked. Switch both off with `dvc remote modify`."
            )
        threads = min(remote.fs.jobs, 16)
        return Store(f"remote {name}", remote.odb, remote.legacy_odb, threads)
    except (RemoteConfigError, RemoteMissingDepsError) as error:
        raise ConfigurationError(f"remote {name}: {error}") from error


def outputs_of(repo: Repo, cache: Store, store: Store | None, remote: str | None) -> list[Output]:
    """Returns what dvc.lock and the .dvc files record; a listing comes from wherever it is whole."""
    name = (remote or repo.config["core"].get("remote") or "").lower()
    outputs = []
    for out in repo.index.outs:
        if not out.hash_info or out.protocol != "local" or not out.is_in_repo:
            continue  # a stage that did not run yet, or data outside of the checkout
        path = PurePosixPath(Path(out.fs_path).relative_to(repo.root_dir)).as_posix()
        info = HashInfo(out.hash_info.name, out.hash_info.value)
        files = {path: info}
        if info.isdir:
            members = cache.listing(info) if out.use_cache else None
            if members is None and store and out.use_cache:
                members = store.listing(info)
            if members is None:
                members = _listing_of_workspace(repo, path, info)
            files = None if members is None else {f"{path}/{member}": hashed for member, hashed in members.items()}
        pushed = out.use_cache and out.can_push and not out.stage.is_repo_import
        pushed = pushed and (out.remote or name).lower() == name
        outputs.append(Output(path, out.stage.addressing, info, out.use_cache, pushed, files))
    return outputs


def _listing_of_workspace(repo: Repo, path: str, info: HashInfo) -> dict[str, HashInfo] | None:
    """Hashes a folder; returns its members if they are the ones that were recorded."""
    tree = Tree()
    for file in files_of(repo, path):
        tree.add(PurePosixPath(file).relative_to(path).parts, None, HashInfo(info.name, file_md5(file, name=info.name)))
    tree.digest(name=info.name)
    return {"/".join(key): member for key, _, member in tree} if tree.hash_info.value == info.value else None


def files_of(repo: Repo, path: str) -> list[str]:
    """The files of a folder that DVC would look at, from the root of the checkout."""
    found = repo.dvcignore.find(repo.fs, str(Path(repo.root_dir, path))) if Path(path).is_dir() else ()
    return sorted(PurePosixPath(Path(file).relative_to(repo.root_dir)).as_posix() for file in found)


def altered(path: str, info: HashInfo | None) -> tuple[str, str | None]:
    """Reads one file of the workspace; returns its path and what is wrong with it."""
    if info is None:
        return path, "is not recorded: it was added afterwards"
    try:
        found = file_md5(path, name=info.name)
    except FileNotFoundError:
        return path, MISSING
    except OSError as error:
        return path, f"cannot be read ({error.strerror or error})"
    return path, None if found == info.value else f"was altered: its md5 is {found}, recorded {info.value}"


def run_hash(path: Path) -> str | None:
    """The name that a note of DVC's run cache should have; None where it cannot be read."""
    try:
        return dict_sha256(load_yaml(str(path)), exclude=["size", "nfiles"])
    except (DvcException, OSError, ValueError):
        return None


def objects_of(outputs: list[Output]) -> dict[HashInfo, None]:
    """Returns the objects that outputs consist of, in their order, each once."""
    return dict.fromkeys(info for output in outputs for info in output.objects)


def is_here(output: Output) -> bool:
    """Tells whether an output is in the workspace, perhaps as a link to nowhere."""
    return os.path.lexists(output.path)


def listed(paths: list[str]) -> str:
    """Returns up to three paths, and how many more there are."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")


def capped(texts: Iterable[str]) -> list[str]:
    """Returns up to SHOWN lines of a message, and how many more there are."""
    texts = [f"  {text}" for text in texts]
    return texts[:SHOWN] + ([f"  ... and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else [])


@contextmanager
def threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that does not finish its queue when something has failed."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
