"""Checks this machine before work fails on it: ``convoy doctor``.

It finds libraries that do not go together, a clock that is off and a disk without room. It finds a folder in which
files cannot be written or locked, a silent server, and a GPU without the TensorFlow for it. ``check`` and every command
of flows check the libraries too, because a wrong mix fails with an error that names none of them.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.filesize import decimal

from convoy import CODE
from convoy.errors import ConfigurationError
from convoy.machine import gpus
from convoy.secrets import mask_in, masked
from convoy.tracking import relocation

PROJECT = CODE / "pyproject.toml"
ROOM = 2 * 10**9  # bytes that are free at least
COPIES = 3  # of data/raw: as ingest stores it, as augment does, and in DVC's cache where files cannot be linked
ENTRIES = 50_000  # files that can still be made; data sets of pictures have more than that
TICK = 2.0  # seconds by which a file system's clock may differ from ours
DRIFT = 60.0  # seconds by which another machine's may
ANSWER_SECONDS = 5.0
TEMPORARY = "temporary files"
SERVERS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
RENEW = "`make -B setup` installs the versions of the lock."


def doctor() -> None:
    """Looks at everything, and prints a line for each.

    Raises:
        ConfigurationError: something will not work; its line says what, and what to do.
    """
    bad = 0
    looks: dict[str, Callable[[], Iterable[str]]] = {
        "libraries": lambda: libraries(deep=True),
        "clock": clock,
        "disk": disk,
        "permissions": permissions,
        "registry": registry,
        "servers": servers,
        "GPU": gpu,
    }
    unseen = {}
    if not any(_addresses()):
        unseen["servers"] = f"neither {' nor '.join(SERVERS)} is an http address"
    if not relocation.is_used():
        unseen["registry"] = "MLFLOW_TRACKING_URI leads elsewhere"
    if not gpus.has_driver():
        unseen["GPU"] = "there is no NVIDIA driver"
    for name, look in looks.items():
        problems = list(look())
        nothing = f"not looked for: {unseen[name]}" if name in unseen else "fine"
        print(f"{name:<12} {'; '.join(problems) or nothing}", flush=True)
        bad += bool(problems)
    if bad:
        raise ConfigurationError(f"{bad} of {len(looks)} will not work; the lines above say what to do.")


def check_libraries() -> None:
    """Raises a ConfigurationError if a library of pyproject.toml is missing or of a version that does not work."""
    if problem := next(libraries(), None):
        raise ConfigurationError(problem)


def libraries(project: Path = PROJECT, deep: bool = False) -> Iterator[str]:
    """Yields what is missing, or installed in a version that does not work, with the range that does.

    Args:
        project: the pyproject.toml, whose comments say why.
        deep: look at what each library itself requires too.
    """
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    waiting = [(Requirement(text), project.name) for text in content["dependencies"]]
    seen = set()
    while waiting:
        wanted, by = waiting.pop(0)
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras), str(wanted.specifier))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            yield f"{wanted.name} is not installed; {by} needs {wanted.name}{wanted.specifier}. {RENEW}"
            continue
        if not wanted.specifier.contains(found.version, prereleases=True):
            yield (
                f"{wanted.name} {found.version} does not work here: {by} needs {wanted.name}{wanted.specifier}. {RENEW}"
            )
        for text in (found.requires or ()) if deep else ():
            further = Requirement(text)
            if any(not further.marker or further.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}):
                waiting.append((further, f"{found.name} {found.version}"))


def clock() -> Iterator[str]:
    """Yields whose clock differs: the file system's, that of who made the last commit, that of a server."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) if os.access(".", os.W_OK) else tempfile.TemporaryFile() as probe:
        ahead = os.fstat(probe.fileno()).st_mtime - time.time()
    if abs(ahead) > TICK:
        yield (
            f"the file system's clock is {_off(ahead)} that of this machine: ingest, which knows files by their times, "
            "reads all of them each time. Synchronise both (NTP)."
        )
    made = _git("log", "-1", "--format=%ct").stdout.strip() if shutil.which("git") else ""
    if made.isdecimal() and int(made) > time.time() + DRIFT:
        yield (
            f"the last commit is {_off(int(made) - time.time())} this machine's clock: what is made now looks older "
            "than what it came from. Set the clock (NTP)."
        )
    for name, address in _addresses():
        answered, said = _asked(address)
        if answered and said:
            ahead = parsedate_to_datetime(said).timestamp() - time.time()
            if abs(ahead) > DRIFT:
                yield (
                    f"the clock of {masked(address)} ({name}) is {_off(ahead)} that of this machine: runs there begin "
                    "and end at wrong times. Synchronise both (NTP)."
                )


def disk() -> Iterator[str]:
    """Yields where there is too little room for what data/raw needs on its way, or for so many files."""
    raw = sum(file.stat().st_size for file in Path("data/raw").rglob("*") if file.is_file())
    seen = set()
    for name, folder in _places().items():
        if (device := folder.stat().st_dev) in seen:
            continue
        seen.add(device)
        needed = ROOM if name == TEMPORARY else max(ROOM, COPIES * raw)
        room, entries = shutil.disk_usage(folder).free, os.statvfs(folder)
        if room < needed:
            of = f" (data/raw has {decimal(raw)})" if needed > ROOM else ""
            yield f"{name}: {folder} has {decimal(room)} free of the {decimal(needed)} needed{of}. Make room."
        if entries.f_files and entries.f_favail < ENTRIES:  # 0: the file system does not count them
            yield f"{name}: {folder} has room for {entries.f_favail:,} more files only (df -i). Remove some."


def permissions() -> Iterator[str]:
    """Yields folders in which files cannot be made, renamed and locked, what is not ours, and what git says."""
    for name, folder in _places().items():
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch, Path(scratch, "a").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Path(scratch, "a").replace(Path(scratch, "b"))
        except OSError as error:
            yield f"{name}: files in {folder} cannot be made, renamed and locked: {error.strerror}. Change its rights."
    for folder in ("data", ".dvc"):
        for place, _, _ in os.walk(folder):
            if not os.access(place, os.W_OK | os.X_OK):
                yield f"{place} cannot be written in; a command of another user made it. chown -R $USER {folder}"
                break
    if shutil.which("git") is None:
        yield "git is not installed; DVC and the records of runs need it."
    elif (said := _git("rev-parse", "HEAD")).returncode:
        yield f"git: {said.stderr.strip().splitlines()[0]}"


def servers() -> Iterator[str]:
    """Yields the tracking and Prefect servers that are set and do not answer."""
    for name, address in _addresses():
        answered, said = _asked(address)
        if not answered:
            yield (
                f"{masked(address)} ({name}) does not answer: {said}. Work goes on without it; what is recorded waits "
                "in data/runs."
            )


def registry() -> Iterator[str]:
    """Yields the versions with an alias in the registry of this checkout whose files are gone."""
    if relocation.is_used():
        relocation.follow(Path.cwd())
        yield from relocation.missing(Path.cwd())


def gpu() -> Iterator[str]:
    """Yields a GPU of NVIDIA's for which TensorFlow has no CUDA."""
    try:
        found = gpus.list_all()
    except gpus.DriverError as error:
        yield f"the NVIDIA driver does not work: {error}. Install it again, or restart the machine after an update."
        return
    if not found:
        return
    try:
        distribution("nvidia-cudnn-cu12")
    except PackageNotFoundError:
        names = ", ".join(sorted({gpu.name for gpu in found}))
        yield f"{len(found)} GPUs are there ({names}), and TensorFlow without CUDA. make GPU=1 setup"


def _places() -> dict[str, Path]:
    """Returns the folders that are written in, by what they are for; of those that are not there yet the parent."""
    config = ConfigParser(interpolation=None)
    config.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    cache = Path(".dvc", config.get("cache", "dir", fallback="cache"))
    wanted = {"data": Path("data"), "checkout": Path(), "DVC's cache": cache, TEMPORARY: Path(tempfile.gettempdir())}
    return {
        name: next(folder for folder in (place.resolve(), *place.resolve().parents) if folder.is_dir())
        for name, place in wanted.items()
    }


def _addresses() -> Iterator[tuple[str, str]]:
    return ((name, os.environ[name]) for name in SERVERS if os.environ.get(name, "").startswith("http"))


def _asked(address: str) -> tuple[bool, str]:
    """Returns whether a server answers ``<address>/health``, with its date, or with what went wrong."""
    login, host = re.fullmatch(r"(https?://)(?:[^/]*@)?(.*)", address).groups()
    try:
        with urllib.request.urlopen(f"{login}{host.rstrip('/')}/health", timeout=ANSWER_SECONDS) as answer:
            return True, answer.headers.get("Date", "")
    except urllib.error.HTTPError as error:  # the server answers, and wants a login
        return True, error.headers.get("Date", "")
    except OSError as error:
        return False, mask_in(str(getattr(error, "reason", error)), address)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)


def _off(seconds: float) -> str:
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'}"
