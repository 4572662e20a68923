"""Sends data and models to a remote and takes them from it: only what is whole."""

import subprocess
import sys

from convoy.errors import ServiceError
from convoy.repo.objects import MISSING, is_here, objects_of, open_repo, open_shared, remote_of
from convoy.repo.verify import Findings, damaged_cache, damaged_remote, empty


def push(remote: str | None = None, *, repair: bool = False) -> None:
    """``dvc push``, after every object that it may send has been read and found whole.

    Args:
        remote: by default the default remote.
        repair: first read the remote as well, and delete from it what is damaged and whole in this cache, together with
            the listings that promise it: for DVC a folder is complete in a remote that holds its listing.

    Raises:
        IntegrityError: an object of the cache is altered, and nothing was pushed; or something is neither here nor
            whole in the remote, and the rest was pushed.
        ServiceError: the remote cannot be reached.
        ConfigurationError: no such remote.
    """
    findings = Findings()
    with open_shared(remote) as (cache, store, outputs):
        bad = cache.examine(objects_of(outputs))
        for output in outputs:
            for info, paths in output.objects.items():
                if bad.get(info, MISSING) != MISSING:
                    damaged_cache(output, info, paths, bad, cache, findings, here=is_here(output))
        if findings.damages:
            raise findings.error("Nothing was pushed.")
        if repair:
            deleted = 0
            broken = store.examine(objects_of(outputs))
            for output in outputs:
                lost = [info for info in output.objects if info in broken]
                for info in {*lost, output.info} if lost else ():
                    if info not in bad and broken.get(info) != MISSING:
                        broken[info] = MISSING  # one object may stand in several outputs
                        store.delete(info)
                        deleted += 1
            print(f"{store.name}: deleted {deleted} objects, to be sent again")
    _dvc("push", remote)
    with open_repo() as repo:
        store = remote_of(repo, remote, needed=True)
        broken = store.examine(bad)
        for output in outputs:
            for info, paths in output.objects.items():
                if info in broken:
                    damaged_remote(output, info, paths, broken, bad, store, findings)
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
    with open_shared(remote) as (cache, store, outputs):
        bad = cache.examine(objects_of(outputs))
        whole = objects_of(outputs).keys() - bad.keys()
        if bad and not store.exists:
            empty(store, len(objects_of(outputs)), findings)
    if bad and not findings.damages:
        _dvc("fetch", remote, needed=False)  # its status is 0 also when it has thrown away what arrived damaged
        with open_shared(remote) as (cache, store, outputs):
            bad = cache.examine(info for info in objects_of(outputs) if info not in whole)
            broken = store.examine(info for info, problem in bad.items() if problem == MISSING)
            for output in outputs:
                # A listing arrives after its members: where one of them is the cause, it is not reported on its own.
                cause = {info for info in output.objects if info in broken or bad.get(info, MISSING) != MISSING}
                for info, paths in output.objects.items():
                    if info in broken:
                        damaged_remote(output, info, paths, broken, bad, store, findings)
                    elif info in cause or (info in bad and not cause):
                        damaged_cache(output, info, paths, bad, cache, findings, here=False)
    if findings.damages:
        raise findings.error("Nothing was checked out: the workspace is as it was.")
    _dvc("checkout", None, "--allow-missing")  # only outputs that are never pushed can be missing now


def _dvc(command: str, remote: str | None, *options: str, needed: bool = True) -> None:
    """Runs a command of DVC, whose own messages the user sees."""
    words = [command, *options, *(["--remote", remote] if remote else [])]
    status = subprocess.run([sys.executable, "-m", "dvc", *words], check=False).returncode
    if status and needed:
        raise ServiceError(f"dvc {' '.join(words)} ended with status {status}; its message is above.")
