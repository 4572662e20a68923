"""Gets raw data: ``python -m stages fetch digits`` fills data/raw/digits, which nothing else changes.

Whatever the source, the folder then holds the files and ``SHA256SUMS``, which lists each of them. What is got is first
complete in data/raw/.partial/<dataset>, so that a failure leaves data/raw/<dataset> as it was. Files that did not
change stay the very same files. The list is taken away before the first change and written after the last: a folder
without one is the work of a killed run, which running again repairs.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.filesize import decimal

from convoy import checksums
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError
from stages.fetch.catalogue import entries
from stages.fetch.download import download, find
from stages.fetch.entry import Fetch
from stages.fetch.folders import synchronise
from stages.fetch.samples import SAMPLES


def fetch(dataset: str, entry: Fetch) -> None:
    """Writes data/raw/<dataset> from exactly one source.

    A data set that the user tracks with ``dvc add data/raw/NAME`` or ``dvc import-url`` needs no fetch entry. Archives
    stay packed; ingest reads them as they are.

    Args:
        dataset: name of the data set.
        entry: its entry of params.yaml.

    Raises:
        ConfigurationError: no source, two sources, an unknown name, or an address that is wrong or needs a login.
        InputRefusedError: ``path`` is missing, empty or holds a link out of it; a download is too large or redirected
            to where it must not be.
        IntegrityError: a checksum is wrong.
        ServiceError: a download was cut, did not come in time or has no room; run again to go on.
    """
    entry.check_source(f"fetch.{dataset}", dataset)
    target = Path("data/raw", dataset)
    former: dict[str, str] = {}
    with suppress(InputRefusedError):  # a damaged list of ours is made again
        former = checksums.read(target)
    folders: set[str] = set()
    with _staging(dataset) as staging:
        if entry.sample is not None:
            files = _make(entry.sample, staging / "copies")
        elif entry.path is not None:
            path = entry.path.expanduser().resolve()
            published = checksums.read(path)
            files, folders = synchronise(path, target, staging / "copies", former)
            checksums.compare(path, published, {name: checksum for name, (_, checksum) in files.items()})
        else:
            files = _download(entry, target, staging / "downloads")
        removed = _install(target, files, folders, former)
    new = sum(copy is not None for copy, _ in files.values())
    size = decimal(sum((target / name).stat().st_size for name in files))
    print(f"{target}: {len(files):,} files, {size}; {new:,} new, {removed:,} taken away")


@contextmanager
def _staging(dataset: str) -> Iterator[Path]:
    """Gives data/raw/.partial/<dataset>; after a failure only what the next run can go on with stays there."""
    folder = Path("data/raw/.partial", dataset)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    try:
        yield folder
    except (ConfigurationError, InputRefusedError, IntegrityError):
        shutil.rmtree(folder / "copies", ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder)
    finally:
        if not any(file.is_file() for file in folder.glob("*/**/*")):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another data set's may be there
            folder.parent.rmdir()


def _download(entry: Fetch, target: Path, folder: Path) -> dict[str, tuple[Path | None, str]]:
    """Downloads to ``folder`` what ``target`` lacks; returns relative path -> (file or None, SHA-256)."""
    files: dict[str, tuple[Path | None, str]] = {}
    for file in entry.urls or entries()[entry.catalogue].files:
        if checksum := find(file, target / file.target):
            files[file.target] = None, checksum
        else:
            files[file.target] = download(file, folder, entry.max_bytes, entry.timeout)
    return files


def _make(sample: str, folder: Path) -> dict[str, tuple[Path, str]]:
    """Makes an embedded sample; returns relative path -> (file, SHA-256)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    SAMPLES[sample](folder)
    made = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): (file, checksums.sha256(file)) for file in made}


def _install(
    target: Path, files: Mapping[str, tuple[Path | None, str]], folders: Collection[str], former: Mapping[str, str]
) -> int:
    """Makes ``target`` hold just these files and folders, and their list.

    Args:
        target: data/raw/<dataset>.
        files: relative path -> (new file to move there, or None if it is there; SHA-256).
        folders: relative paths of folders, empty ones included.
        former: the list that ``target`` has now.

    Returns:
        The number of files taken away.
    """
    entries = {name: checksum for name, (_, checksum) in files.items()}
    wanted = {*folders, *(parent.as_posix() for name in files for parent in Path(name).parents)}
    target.mkdir(parents=True, exist_ok=True)
    present = sorted(target.rglob("*"), reverse=True)  # a folder after what is in it
    relative = {path: path.relative_to(target).as_posix() for path in present}
    surplus = [path for path in present if (path.is_symlink() or not path.is_dir()) and relative[path] not in files]
    surplus = [path for path in surplus if relative[path] != checksums.SUMS]
    if surplus or entries != former or any(copy for copy, _ in files.values()):
        (target / checksums.SUMS).unlink(missing_ok=True)
    for path in surplus:
        path.unlink()
    for path in present:
        if path.is_dir() and not path.is_symlink() and relative[path] not in wanted:
            path.rmdir()
    for name in wanted:
        (target / name).mkdir(parents=True, exist_ok=True)
    for name, (copy, _) in files.items():
        if copy is not None:
            copy.replace(target / name)  # never written into: DVC may have linked the former one into its cache
    if not (target / checksums.SUMS).exists():
        checksums.write(target, entries)
    return len(surplus)
