"""Re-hashes what the data relies on, and lets data pass to and from a remote only when it is whole.

``python -m stages verify`` reads every byte of the outputs in the workspace, of DVC's cache and of the default remote;
``verify REMOTE`` of that remote, in which everything then has to be. ``push`` and ``pull`` are ``dvc push`` and
``dvc pull`` with that check between reading and writing.

DVC alone does not notice: it takes a file for unchanged while its inode, size and time are (dvc#9641) and a cache
object for whole while it is read-only; ``dvc push`` sends an altered object, and takes a folder for complete when its
listing is in the remote; ``dvc pull`` refuses a damaged object under ``verify = true``, but deletes the folder that it
would have replaced. So nothing here asks DVC's state database or its ``check()``, which removes what it finds damaged.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from convoy.errors import ConfigurationError, IntegrityError, ServiceError
from convoy.machine.progress import track
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

    @property
    def objects(self) -> dict[HashInfo, list[str]]:
        """The objects that it consists of, each with the paths it stands for."""
        objects = {self.info: [self.path]}
        for path, info in (self.files or {}).items():
            if info != self.info:
                objects.setdefault(info, []).append(path)
        return objects

    @property
    def again(self) -> str:
        """How to make it anew."""
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
        with _threads(self.threads) as pool:
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


@dataclass
class Findings:
    """What was damaged, what to do about it, and what is no damage but worth a line; texts without repetition."""

    damages: dict[str, None] = field(default_factory=dict)
    remedies: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, damage: str, remedy: str) -> None:
        self.damages[damage] = self.remedies[remedy] = None

    def error(self, end: str = "") -> IntegrityError:
        """The one message with everything, as far as a person reads."""
        lines = [f"{len(self.damages):,} damaged or missing. {end}".rstrip(), *_capped(self.damages)]
        return IntegrityError(*lines, "What to do:", *_capped(self.remedies))


def verify(remote: str | None = None) -> None:
    """Reads every byte of the outputs in the workspace, of DVC's cache and of a remote, and compares the hashes.

    Not while a pipeline runs: what it just writes is not recorded yet.

    Args:
        remote: a remote that has to hold all that dvc.lock and the .dvc files refer to. By default the default remote
            if there is one, where what is whole in the cache may still be waiting for a push.

    Raises:
        IntegrityError: lists what is altered or missing, the paths that it stands for, and what to do.
        ServiceError: the remote cannot be reached; the rest is whole.
        ConfigurationError: no such remote.
    """
    findings, unreachable = Findings(), None
    with opened() as repo:
        cache, store = _cache(repo), _remote(repo, remote)
        try:
            if store:
                _ = store.exists
        except ServiceError as error:
            store, unreachable = None, error
        outputs = _outputs(repo, cache, store, remote)
        bad = _check_cache(repo, outputs, cache, findings)
        _check_workspace(repo, outputs, bad, findings)
        if store:
            _check_remote(outputs, store, bad, findings, complete=remote is not None)
        elif not unreachable:
            print("remote: not looked at, there is no default remote (dvc remote default NAME)")
    for note in findings.notes:
        print(note)
    if findings.damages:
        raise findings.error(f"Not checked: {unreachable}" if unreachable else "")
    if unreachable:
        raise unreachable


def push(remote: str | None = None, *, repair: bool = False) -> None:
    """``dvc push``, after every object that it may send has been read and found whole.

    Args:
        remote: by default the default remote.
        repair: first read the remote as well, and delete from it what is damaged and whole in this cache, together with
            the listings that promise it: for DVC a folder is complete in a remote when its listing is there.

    Raises:
        IntegrityError: an object of the cache is altered, and nothing was pushed; or something is neither here nor
            whole in the remote, and the rest was pushed.
        ServiceError: the remote cannot be reached.
        ConfigurationError: no such remote.
    """
    findings = Findings()
    with _shared(remote) as (cache, store, outputs):
        bad = cache.examine(_objects(outputs))
        for output in outputs:
            for info, paths in output.objects.items():
                if bad.get(info, MISSING) != MISSING:
                    _damaged_cache(output, info, paths, bad, cache, findings, here=_is_here(output))
        if findings.damages:
            raise findings.error("Nothing was pushed.")
        if repair:
            deleted = 0
            broken = store.examine(_objects(outputs))
            for output in outputs:
                lost = [info for info in output.objects if info in broken]
                for info in {*lost, output.info} if lost else ():
                    if info not in bad and broken.get(info) != MISSING:
                        broken[info] = MISSING  # one object may stand in several outputs
                        store.delete(info)
                        deleted += 1
            print(f"{store.name}: deleted {deleted} objects, to be sent again")
    _dvc("push", remote)
    with opened() as repo:
        store = _remote(repo, remote, needed=True)
        broken = store.examine(bad)
        for output in outputs:
            for info, paths in output.objects.items():
                if info in broken:
                    _damaged_remote(output, info, paths, broken, bad, store, findings)
    if findings.damages:
        raise findings.error("What this clone has was pushed.")


def pull(remote: str | None = None) -> None:
    """``dvc pull`` in two steps: the workspace changes only when every object that it needs has arrived whole.

    Raises:
        IntegrityError: lists what is altered or missing, and where; the workspace is as it was.
        ServiceError: the remote cannot be reached, or DVC could not check out.
        ConfigurationError: no such remote.
    """
    findings = Findings()
    with _shared(remote) as (cache, store, outputs):
        bad = cache.examine(_objects(outputs))
        whole = _objects(outputs).keys() - bad.keys()
        if bad and not store.exists:
            _empty(store, len(_objects(outputs)), findings)
    if bad and not findings.damages:
        _dvc("fetch", remote, needed=False)  # its status is 0 also when it has thrown away what arrived damaged
        with _shared(remote) as (cache, store, outputs):
            bad = cache.examine(info for info in _objects(outputs) if info not in whole)
            broken = store.examine(info for info, problem in bad.items() if problem == MISSING)
            for output in outputs:
                # A listing arrives after its members: where one of them is the cause, it is not reported on its own.
                cause = {info for info in output.objects if info in broken or bad.get(info, MISSING) != MISSING}
                for info, paths in output.objects.items():
                    if info in broken:
                        _damaged_remote(output, info, paths, broken, bad, store, findings)
                    elif info in cause or (info in bad and not cause):
                        _damaged_cache(output, info, paths, bad, cache, findings, here=False)
    if findings.damages:
        raise findings.error("Nothing was checked out: the workspace is as it was.")
    _dvc("checkout", None, "--allow-missing")  # only outputs that are never pushed can be missing now


def _check_cache(repo: Repo, outputs: list[Output], cache: Store, findings: Findings) -> dict[HashInfo, str]:
    """Reads every object of the cache, whichever commit it is of; returns what is wrong with each bad one."""
    cached = [output for output in outputs if output.cached]
    known = _objects(cached)
    names = list(cache.odb.all()) if cache.exists else []
    halves = [name for name in names if name.endswith(".tmp")]
    if halves:
        findings.notes.append(
            f"half-written by runs that were ended, and no data: {len(halves):,} files of the cache (python -m stages "
            "clean removes them)"
        )
    stored = [HashInfo(cache.odb.hash_name, name) for name in names if not name.endswith(".tmp")]
    bad = cache.examine(dict.fromkeys([*stored, *known]))
    absent = []
    for output in cached:
        here, missing = _is_here(output), 0
        for info, paths in output.objects.items():
            if info in bad and (here or bad[info] != MISSING):
                _damaged_cache(output, info, paths, bad, cache, findings, here=here)
            missing += not here and bad.get(info) == MISSING
        absent += [output.path] if missing else []
    for info, problem in bad.items():
        if info not in known:
            findings.add(
                f"cache: {cache.place(info)} {problem}: no data of this commit",
                "cache objects of other commits: delete those named; where a remote has them, "
                "`dvc fetch --all-commits` brings them back",
            )
    entries = sorted(path for path in Path(repo.stage_cache.cache_dir).glob("*/*/*") if path.is_file())
    for path in entries:
        if _run_hash(path) != path.name:
            findings.add(
                f"cache: {os.path.relpath(path)} was altered: DVC's note of an earlier run",
                "notes of earlier runs: delete those named; the stage then runs again where DVC would have used it",
            )
    print(f"cache: read {len(stored):,} objects; notes of earlier runs: {len(entries):,}")
    if absent:
        findings.notes.append(
            f"not in this clone: {len(absent):,} of {len(cached):,} outputs, e.g. {absent[0]} "
            "(python -m stages pull brings them)"
        )
    return bad


def _check_workspace(repo: Repo, outputs: list[Output], bad: dict[HashInfo, str], findings: Findings) -> None:
    """Reads every output that is checked out."""
    wanted = {}  # path: hash and output
    for output in filter(_is_here, outputs):
        if output.files is None:
            findings.add(
                f"workspace: {output.path} is not as {output.stage} left it; which files changed is not known, as its "
                "listing is nowhere",
                f"{output.path}: {output.again}",
            )
            continue
        wanted |= {path: (info, output) for path, info in output.files.items()}
        for path in _files(repo, output.path):
            wanted.setdefault(path, (None, output))
    with _threads(os.cpu_count() or 1) as pool:
        tasks = ((path, info) for path, (info, _) in wanted.items())
        for path, problem in track(pool.map(lambda task: _altered(*task), tasks), "workspace", "files", len(wanted)):
            if problem:
                output = wanted[path][1]
                lost = not output.cached or any(info in bad for info in output.objects)
                source = (
                    f"bring it back with `python -m stages pull`, or {output.again}"
                    if lost
                    else f"`dvc checkout {output.path}`; if the change is meant, `dvc commit {output.path}` instead"
                )
                findings.add(f"workspace: {path} {problem}", f"{output.path}: delete the files named, then {source}")
    print(f"workspace: read {len(wanted):,} files")


def _check_remote(
    outputs: list[Output], store: Store, bad: dict[HashInfo, str], findings: Findings, *, complete: bool
) -> None:
    """Reads every object that this commit needs; unless ``complete``, what is whole here may be missing there."""
    outputs = [output for output in outputs if output.pushed]
    objects = _objects(outputs)
    broken = store.examine(objects)
    print(f"{store.name}: read {len(objects) - sum(problem == MISSING for problem in broken.values()):,} objects")
    if objects and not store.exists:
        if complete:
            _empty(store, len(objects), findings)
        else:
            findings.notes.append(
                f"{store.name} ({store.url}) is empty: nothing was pushed yet (python -m stages push)"
            )
        return
    waiting = set()
    for output in outputs:
        promised = output.files is not None and broken.get(output.info) is None and output.info.isdir
        for info, paths in output.objects.items():
            if info in broken:
                if complete or promised or info in bad or broken[info] != MISSING:
                    _damaged_remote(output, info, paths, broken, bad, store, findings)
                else:
                    waiting.add(output.path)
    if waiting:
        findings.notes.append(
            f"{store.name}: not pushed yet: {len(waiting):,} of {len(outputs):,} outputs, e.g. {min(waiting)} "
            "(python -m stages push)"
        )


def _empty(store: Store, objects: int, findings: Findings) -> None:
    findings.add(
        f"{store.name} ({store.url}) is empty or does not exist: it has none of the {objects:,} objects",
        "`python -m stages push` in a clone that has the data, if nothing was pushed yet; else check the remote's URL",
    )


def _damaged_cache(
    output: Output,
    info: HashInfo,
    paths: list[str],
    bad: dict[HashInfo, str],
    cache: Store,
    findings: Findings,
    *,
    here: bool,
) -> None:
    delete = "" if bad[info] == MISSING else "delete the objects named, then "
    fetch = f"`dvc fetch {output.path}`, or where no remote has it "
    from_workspace = f"`dvc commit --force {output.path}`, which takes it from the workspace if that is whole"
    findings.add(
        f"cache: {cache.place(info)} {bad[info]}: {_names(paths)}",
        f"{output.path} in the cache: {delete}{fetch}{from_workspace if here else output.again}",
    )


def _damaged_remote(
    output: Output,
    info: HashInfo,
    paths: list[str],
    broken: dict[HashInfo, str],
    bad: dict[HashInfo, str],
    store: Store,
    findings: Findings,
) -> None:
    whole = not any(info in bad for info in output.objects)
    where = "here" if whole else f"in a clone that has it whole; if there is none, {output.again} first"
    mend = f"python -m stages push --repair {store.name.removeprefix('remote ')}"
    findings.add(
        f"{store.name}: {store.place(info)} {broken[info]}: {_names(paths)}",
        f"{output.path} in the {store.name}: `{mend}` {where}",
    )


@contextmanager
def opened(wait: bool = False) -> Iterator[Repo]:
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
def _shared(remote: str | None) -> Iterator[tuple[Store, Store, list[Output]]]:
    """Opens the cache, a remote, and the outputs that are pushed to it."""
    with opened() as repo:
        cache, store = _cache(repo), _remote(repo, remote, needed=True)
        yield cache, store, [output for output in _outputs(repo, cache, store, remote) if output.pushed]


def _cache(repo: Repo) -> Store:
    return Store("cache", repo.cache.local, repo.cache.legacy, os.cpu_count() or 1)


def _remote(repo: Repo, name: str | None, *, needed: bool = False) -> Store | None:
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


def _outputs(repo: Repo, cache: Store, store: Store | None, remote: str | None) -> list[Output]:
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
    for file in _files(repo, path):
        tree.add(PurePosixPath(file).relative_to(path).parts, None, HashInfo(info.name, file_md5(file, name=info.name)))
    tree.digest(name=info.name)
    return {"/".join(key): member for key, _, member in tree} if tree.hash_info.value == info.value else None


def _files(repo: Repo, path: str) -> list[str]:
    """The files of a folder that DVC would look at, from the root of the checkout."""
    found = repo.dvcignore.find(repo.fs, str(Path(repo.root_dir, path))) if Path(path).is_dir() else ()
    return sorted(PurePosixPath(Path(file).relative_to(repo.root_dir)).as_posix() for file in found)


def _altered(path: str, info: HashInfo | None) -> tuple[str, str | None]:
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


def _run_hash(path: Path) -> str | None:
    """The name that a note of DVC's run cache should have; None where it cannot be read."""
    try:
        return dict_sha256(load_yaml(str(path)), exclude=["size", "nfiles"])
    except (DvcException, OSError, ValueError):
        return None


def _objects(outputs: list[Output]) -> dict[HashInfo, None]:
    return dict.fromkeys(info for output in outputs for info in output.objects)


def _is_here(output: Output) -> bool:
    return os.path.lexists(output.path)


def _names(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")


def _capped(texts: Iterable[str]) -> list[str]:
    texts = [f"  {text}" for text in texts]
    return texts[:SHOWN] + ([f"  ... and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else [])


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that does not finish its queue when something has failed."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _dvc(command: str, remote: str | None, *options: str, needed: bool = True) -> None:
    """Runs a command of DVC, whose own messages the user sees."""
    words = [command, *options, *(["--remote", remote] if remote else [])]
    status = subprocess.run([sys.executable, "-m", "dvc", *words], check=False).returncode
    if status and needed:
        raise ServiceError(f"dvc {' '.join(words)} ended with status {status}; its message is above.")
