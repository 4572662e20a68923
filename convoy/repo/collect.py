"""Removes from DVC's cache what neither a commit nor a version that stays needs."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.scm import NoSCM

from convoy.errors import ServiceError
from convoy.repo.objects import open_repo
from convoy.repo.restore import restore, run_dvc


def collect(lineages: Sequence[dict[str, Any]], dry_run: bool) -> tuple[int, int]:
    """Removes from DVC's cache what is unused; returns how many objects and bytes.

    DVC's own collector keeps what other repositories use: each lineage becomes one, of its stages alone.
    """
    removed: list[int] = []

    class Listener(logging.Handler):
        """Takes down what DVC says it would remove."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "Removing %s":
                removed.append(Path(record.args[0]).stat().st_size)

    with tempfile.TemporaryDirectory() as scratch, open_repo() as repo:
        others = []
        here = repo.cache.local.exists
        known = [
            one for one in lineages if one["files"] or any(here(out["md5"]) for out in _outs(one))
        ]  # not elsewhere
        for number, lineage in enumerate(known):
            folder = Path(scratch, str(number))
            folder.mkdir()
            run_dvc(folder, "init", "--no-scm", "--quiet")
            restore(folder, lineage)
            (folder / "dvc.yaml").write_text(json.dumps({"stages": _stages(lineage["lock"])}))
            others.append(str(folder))
        speaks, complains = logging.getLogger("dvc_data.hashfile.gc"), logging.getLogger("dvc")
        listener, levels = Listener(), (speaks.level, complains.level)
        speaks.addHandler(listener)
        speaks.setLevel(logging.INFO)
        complains.setLevel(logging.ERROR)  # of every output that a commit's dvc.lock does not have
        everywhere = not isinstance(repo.scm, NoSCM)
        options = {"workspace": True, "all_branches": everywhere, "all_tags": everywhere, "repos": others}
        try:
            repo.gc(**options, dry=True)
            if not dry_run:
                repo.gc(**options)
        except DvcException as error:
            raise ServiceError(f"DVC's cache was not cleaned: {error}") from error
        finally:
            speaks.removeHandler(listener)
            speaks.setLevel(levels[0])
            complains.setLevel(levels[1])
    return len(removed), sum(removed)


def _outs(lineage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what DVC recorded of each output of a lineage."""
    for entry in lineage["lock"]["stages"].values():
        yield from entry["outs"]


def _stages(lock: dict[str, Any]) -> dict[str, Any]:
    """Returns the stages of a dvc.yaml whose entries a lock has."""
    stages: dict[str, Any] = {}
    for name, entry in lock["stages"].items():
        kind, _, key = name.partition("@")
        do = {"cmd": entry["cmd"], "outs": [{out["path"]: {"persist": True}} for out in entry["outs"]]}
        stages[kind] = {"foreach": [key], "do": do}
    return stages
