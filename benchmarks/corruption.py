"""Random damage and who notices: ``python -m benchmarks.corruption [DAMAGES] [SEED]``, 200 and 0 by default.

Copies the checkout into a temporary folder, makes the shards of digits (no training) and pushes them to a folder. Then
one damage after another, each undone before the next: a bit of a random file flipped, or the file cut at a random
place, with its mode and its times kept, by which DVC would notice. Each damage counts as accepted if it passes every
guard that is asked: opening the shards as the next stage does, ``verify``, and ``pull`` into a second clone. What DVC's
own ``status`` notices stands beside it. Prints a table for RESULTS.md; exit status 1 if anything was accepted.
"""

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from dvc.repo import Repo
from rich.progress import track
from ruamel.yaml import YAML

from convoy.data.shards import Shards
from convoy.errors import StageError
from convoy.files import read_sealed
from convoy.repo.verify import verify

ROOT = Path(__file__).parent.parent
PLACES = {  # what stands in the table: where its files are
    "raw files": ["data/raw"],
    "shards and their tables": ["data/ingest", "data/augment"],
    "cache objects": [".dvc/cache/files"],
    "remote objects": ["../convoy-storage/files"],
}


def main(damages: int = 200, seed: int = 0) -> int:
    """Returns the exit status; needs about four minutes for 200 damages on 2 cores."""
    rng, started = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch, "first", "convoy"), Path(scratch, "second", "convoy")
        os.environ["DVC_SITE_CACHE_DIR"] = str(Path(scratch, "site"))
        prepare(first, second)
        os.chdir(first)
        verify("storage")  # whole before the first damage
        usual = {cloud: status(cloud=cloud) for cloud in (False, True)}
        counts: dict[str, Counter] = {place: Counter() for place in PLACES}
        for number in track(range(damages), "damages"):
            place = list(PLACES)[number % len(PLACES)]
            files = [path for folder in PLACES[place] for path in sorted(Path(folder).rglob("*")) if path.is_file()]
            # What ingest remembers of its last run is no data: the next run checks it, and else does without.
            files = [path for path in files if path.parts[2:3] != (".cache",)]
            path = rng.choice([file for file in files if file.stat().st_size])
            kind = rng.choice(["flipped", "cut"])
            with damaged(path, kind, rng):
                noticed = ask(path, place, second, usual)
            counts[place].update([kind, *(guard for guard, seen in noticed.items() if seen)])
            counts[place]["opening asked"] += noticed["opening"] is not None
            ours = noticed["opening"] or noticed["verify"] or noticed["pull"]
            counts[place]["accepted"] += not ours
            if not ours:
                print(f"accepted: {path} {kind}")
        verify("storage")  # and after the last was undone
        os.chdir(ROOT)
    print("| damaged | flipped + cut | noticed on opening | by `verify` | by `pull` | by `dvc status` | accepted |")
    print("|---|---|---|---|---|---|---|")
    for place, count in counts.items():
        total = count["flipped"] + count["cut"]
        opening = f"{count['opening']} of {count['opening asked']}" if count["opening asked"] else "-"
        pull = count["pull"] if place == "remote objects" else "-"
        print(
            f"| {place} | {count['flipped']} + {count['cut']} | {opening} | {count['verify']} of {total} | {pull} | "
            f"{count['dvc status']} | {count['accepted']} |"
        )
    print(f"\nseed {seed}, {time.monotonic() - started:.0f} s")
    return int(any(count["accepted"] for count in counts.values()))


def prepare(first: Path, second: Path) -> None:
    """Makes a clone with shards, pushes them to the folder beside it, and pulls them into a second clone."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, first / name)
    yaml = YAML()
    params = yaml.load(first / "params.yaml")
    params |= {"train": {}, "register": {}}
    yaml.dump(params, first / "params.yaml")
    run(first, "git", "init", "-q")
    run(first, sys.executable, "-m", "dvc", "repro", "-q")
    run(first, sys.executable, "-m", "dvc", "push", "-q")
    run(first, "git", "add", "-A")
    run(first, "git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qm", "shards")
    run(ROOT, "git", "clone", "-q", str(first), str(second))
    storage = str(first.parent / "convoy-storage")
    run(second, sys.executable, "-m", "dvc", "remote", "modify", "--local", "storage", "url", storage)
    run(second, sys.executable, "-m", "flows", "pull")


@contextlib.contextmanager
def damaged(path: Path, kind: str, rng: random.Random) -> Iterator[None]:
    """Flips one bit of a file or cuts it, so that mode and times look untouched; undoes it at the end."""
    before, content = path.stat(), path.read_bytes()
    place = rng.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)

    def write(bytes_: bytes) -> None:
        path.chmod(0o644)
        path.write_bytes(bytes_)
        path.chmod(before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    write(bytes(changed) if kind == "flipped" else content[:place])
    try:
        yield
    finally:
        write(content)


def ask(path: Path, place: str, second: Path, usual: dict[bool, dict]) -> dict[str, bool | None]:
    """Returns which guard notices; None: it is not asked, as it does not read this file."""
    remote = place == "remote objects"
    noticed: dict[str, bool | None] = {"opening": None, "pull": None}
    if place == "shards and their tables":
        if path.parent.name in ("train", "val", "test"):
            noticed["opening"] = refuses(Shards, path.parent)
        elif path.name in ("about.json", "key.json"):
            noticed["opening"] = refuses(read_sealed, path)
    noticed["dvc status"] = status(cloud=remote) != usual[remote]
    noticed["verify"] = refuses(verify)
    if remote:
        noticed["pull"] = refused_by_pull(second, Path(".dvc/cache/files", path.relative_to(PLACES[place][0])))
    return noticed


def status(*, cloud: bool) -> dict:
    """What DVC itself says: about workspace and cache, or about the remote."""
    with quiet(), Repo() as repo:
        return repo.status(cloud=cloud)


def refuses(guard: Callable[..., object], *arguments: object) -> bool:
    """Whether a guard raises one of our own errors."""
    try:
        with quiet():
            guard(*arguments)
    except StageError:
        return True
    return False


def refused_by_pull(clone: Path, name: Path) -> bool:
    """Lets a clone, which is otherwise whole, fetch one object again."""
    kept = clone / "kept"
    (clone / name).rename(kept)
    words = [sys.executable, "-m", "flows", "pull"]
    done = subprocess.run(words, cwd=clone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    arrived = (clone / name).exists()
    kept.replace(clone / name)
    return done.returncode == 4 and not arrived


def quiet() -> contextlib.AbstractContextManager:
    """Hides what a guard prints."""
    return contextlib.redirect_stdout(io.StringIO())


def run(folder: Path, *words: str) -> None:
    """Runs a command in a clone, or ends with its output."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} in {folder}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
