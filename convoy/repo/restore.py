"""Restores what DVC recorded of a version in another checkout: its dvc.lock, its .dvc files and its data."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convoy.errors import ConfigurationError, IntegrityError, ServiceError
from convoy.repo.objects import open_repo


def restore(folder: Path, recorded: dict[str, Any]) -> None:
    """Writes what DVC recorded into a checkout, which gets the cache and the remotes of this one.

    Args:
        folder: the checkout.
        recorded: the content of a version's lineage.json.

    Raises:
        IntegrityError: it names a file that is no .dvc file of raw data.
        ServiceError: DVC failed.
    """
    (folder / "dvc.lock").write_text(json.dumps(recorded["lock"]))  # YAML, too
    for path, text in recorded["files"].items():
        if not re.fullmatch(r"data/raw/[^/\\]+\.dvc", path):  # it comes from a registry, which others may write
            raise IntegrityError(
                f"the lineage of a version names the file {path!r}; only data/raw/<name>.dvc is allowed."
            )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    settings = Path(".dvc/config.local")
    if settings.exists():
        shutil.copyfile(settings, folder / settings)
    with open_repo() as repo:
        place = Path(repo.cache.local_cache_dir).resolve()
    run_dvc(folder, "cache", "dir", "--local", str(place))


def check_out(name: str, folder: Path, paths: Sequence[str]) -> None:
    """Has DVC write outputs into a checkout, from the cache or else the remote.

    Raises:
        ConfigurationError: they are in neither, or it cannot be reached; the message names those that lack.
    """
    if not run_dvc(folder, "checkout", "--quiet", *paths, needed=False).returncode:
        return
    pulled = run_dvc(folder, "pull", *paths, needed=False)
    if not pulled.returncode:
        return
    lost = [path for path in paths if run_dvc(folder, "checkout", "--quiet", path, needed=False).returncode]
    lines = _said(pulled).splitlines()
    why = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1]).rstrip(":")
    raise ConfigurationError(
        f"{name} cannot be trained again: {', '.join(lost)} are neither in DVC's cache nor in a remote (DVC: {why}). "
        "A clone that has them can send them, convoy push, or be the remote itself: "
        f"dvc remote add --default other CLONE/.dvc/cache. convoy trace {name} shows their hashes."
    )


def run_dvc(folder: Path, *words: str, needed: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of DVC in a checkout.

    Raises:
        ServiceError: it is ``needed`` and failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode and needed:
        raise ServiceError(f"dvc {words[0]} ended with status {done.returncode}: {_said(done)}")
    return done


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the last that a command said: why it failed, which some commands of DVC print as if it was a result."""
    return (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-2000:]
