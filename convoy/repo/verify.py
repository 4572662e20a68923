"""Re-hashes what the data relies on, and lets data pass to and from a remote only when it is whole.

``convoy verify`` reads every byte of the outputs in the workspace, of DVC's cache and of the default remote;
``verify REMOTE`` of that remote, in which everything then has to be. ``push`` and ``pull`` are ``dvc push`` and
``dvc pull`` with that check between reading and writing.

DVC alone does not notice: it takes a file for unchanged while its inode, size and time are (dvc#9641) and a cache
object for whole while it is read-only; ``dvc push`` sends an altered object, and takes a folder for complete when its
listing is in the remote; ``dvc pull`` refuses a damaged object under ``verify = true``, but deletes the folder that it
would have replaced. So nothing here asks DVC's state database or its ``check()``, which removes what it finds damaged.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo

from convoy.errors import IntegrityError, ServiceError
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.repo.objects import (
    MISSING,
    Output,
    Store,
    altered,
    cache_of,
    capped,
    files_of,
    is_here,
    listed,
    objects_of,
    open_repo,
    outputs_of,
    remote_of,
    run_hash,
    threads,
)


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
        lines = [f"{len(self.damages):,} damaged or missing. {end}".rstrip(), *capped(self.damages)]
        return IntegrityError(*lines, "What to do:", *capped(self.remedies))


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
    with open_repo() as repo:
        cache, store = cache_of(repo), remote_of(repo, remote)
        try:
            if store:
                _ = store.exists
        except ServiceError as error:
            store, unreachable = None, error
        outputs = outputs_of(repo, cache, store, remote)
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


def _check_cache(repo: Repo, outputs: list[Output], cache: Store, findings: Findings) -> dict[HashInfo, str]:
    """Reads every object of the cache, whichever commit it is of; returns what is wrong with each bad one."""
    cached = [output for output in outputs if output.cached]
    known = objects_of(cached)
    names = list(cache.odb.all()) if cache.exists else []
    halves = [name for name in names if name.endswith(".tmp")]
    if halves:
        findings.notes.append(
            f"half-written by runs that were ended, and no data: {len(halves):,} files of the cache (convoy clean "
            "removes them)"
        )
    stored = [HashInfo(cache.odb.hash_name, name) for name in names if not name.endswith(".tmp")]
    bad = cache.examine(dict.fromkeys([*stored, *known]))
    absent = []
    for output in cached:
        here, missing = is_here(output), 0
        for info, paths in output.objects.items():
            if info in bad and (here or bad[info] != MISSING):
                damaged_cache(output, info, paths, bad, cache, findings, here=here)
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
        if run_hash(path) != path.name:
            findings.add(
                f"cache: {os.path.relpath(path)} was altered: DVC's note of an earlier run",
                "notes of earlier runs: delete those named; the stage then runs again where DVC would have used it",
            )
    print(f"cache: read {len(stored):,} objects; notes of earlier runs: {len(entries):,}")
    if absent:
        findings.notes.append(
            f"not in this clone: {len(absent):,} of {len(cached):,} outputs, e.g. {absent[0]} (convoy pull brings them)"
        )
    return bad


def _check_workspace(repo: Repo, outputs: list[Output], bad: dict[HashInfo, str], findings: Findings) -> None:
    """Reads every output that is checked out."""
    wanted = {}  # path: hash and output
    for output in filter(is_here, outputs):
        if output.files is None:
            findings.add(
                f"workspace: {output.path} is not as {output.stage} left it; which files changed is not known, as its "
                "listing is nowhere",
                f"{output.path}: {output.again}",
            )
            continue
        wanted |= {path: (info, output) for path, info in output.files.items()}
        for path in files_of(repo, output.path):
            wanted.setdefault(path, (None, output))
    with threads(cores()) as pool:
        tasks = ((path, info) for path, (info, _) in wanted.items())
        for path, problem in track(pool.map(lambda task: altered(*task), tasks), "workspace", "files", len(wanted)):
            if problem:
                output = wanted[path][1]
                lost = not output.cached or any(info in bad for info in output.objects)
                source = (
                    f"bring it back with `convoy pull`, or {output.again}"
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
    objects = objects_of(outputs)
    broken = store.examine(objects)
    print(f"{store.name}: read {len(objects) - sum(problem == MISSING for problem in broken.values()):,} objects")
    if objects and not store.exists:
        if complete:
            empty(store, len(objects), findings)
        else:
            findings.notes.append(f"{store.name} ({store.url}) is empty: nothing was pushed yet (convoy push)")
        return
    waiting = set()
    for output in outputs:
        promised = output.files is not None and broken.get(output.info) is None and output.info.isdir
        for info, paths in output.objects.items():
            if info in broken:
                if complete or promised or info in bad or broken[info] != MISSING:
                    damaged_remote(output, info, paths, broken, bad, store, findings)
                else:
                    waiting.add(output.path)
    if waiting:
        findings.notes.append(
            f"{store.name}: not pushed yet: {len(waiting):,} of {len(outputs):,} outputs, e.g. {min(waiting)} "
            "(convoy push)"
        )


def empty(store: Store, objects: int, findings: Findings) -> None:
    """Adds that a remote has none of so many ``objects``."""
    findings.add(
        f"{store.name} ({store.url}) is empty or does not exist: it has none of the {objects:,} objects",
        "`convoy push` in a clone that has the data, if nothing was pushed yet; else check the remote's URL",
    )


def damaged_cache(
    output: Output,
    info: HashInfo,
    paths: list[str],
    bad: dict[HashInfo, str],
    cache: Store,
    findings: Findings,
    *,
    here: bool,
) -> None:
    """Adds an object of the cache that is altered or missing.

    Args:
        output: that needs it.
        info: its hash.
        paths: that it stands for.
        bad: what is wrong with objects of the cache.
        cache: where it lies.
        findings: gets it.
        here: the output is in the workspace, from which the cache can take it.
    """
    delete = "" if bad[info] == MISSING else "delete the objects named, then "
    fetch = f"`dvc fetch {output.path}`, or where no remote has it "
    from_workspace = f"`dvc commit --force {output.path}`, which takes it from the workspace if that is whole"
    findings.add(
        f"cache: {cache.place(info)} {bad[info]}: {listed(paths)}",
        f"{output.path} in the cache: {delete}{fetch}{from_workspace if here else output.again}",
    )


def damaged_remote(
    output: Output,
    info: HashInfo,
    paths: list[str],
    broken: dict[HashInfo, str],
    bad: dict[HashInfo, str],
    store: Store,
    findings: Findings,
) -> None:
    """Adds an object of a remote that is altered or missing.

    Args:
        output: that needs it.
        info: its hash.
        paths: that it stands for.
        broken: what is wrong with objects of the remote.
        bad: the same of the cache.
        store: the remote.
        findings: gets it.
    """
    whole = not any(info in bad for info in output.objects)
    where = "here" if whole else f"in a clone that has it whole; if there is none, {output.again} first"
    mend = f"convoy push --repair {store.name.removeprefix('remote ')}"
    findings.add(
        f"{store.name}: {store.place(info)} {broken[info]}: {listed(paths)}",
        f"{output.path} in the {store.name}: `{mend}` {where}",
    )
