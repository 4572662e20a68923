"""Gets raw data: ``python -m stages fetch digits`` fills data/raw/digits, which nothing else changes.

Whatever the source, the folder then holds the files and ``SHA256SUMS``, which lists each of them. What is got is first
complete in data/raw/.partial/<dataset>, so that a failure leaves data/raw/<dataset> as it was. Files that did not
change stay the very same files. The list is taken away before the first change and written after the last: a folder
without one is the work of a killed run, which running again repairs.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field
from rich.filesize import decimal

from convoy import checksums
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError
from convoy.secrets import masked
from stages.fetch.addresses import File, check_files
from stages.fetch.catalogue import entries
from stages.fetch.download import download, find
from stages.fetch.folders import synchronise
from stages.fetch.samples import SAMPLES

GIB = 2**30

Urls = Annotated[list[File], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
Bytes = Annotated[ByteSize, Field(gt=0)]  # a number, or text such as 50 GB
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def fetch(
    dataset: str,
    *,
    sample: str | None = None,
    path: Path | None = None,
    urls: Urls | None = None,
    catalogue: str | None = None,
    max_bytes: Bytes = 20 * GIB,
    timeout: Seconds = 60.0,
) -> None:
    """Writes data/raw/<dataset> from exactly one source.

    A data set that the user tracks with ``dvc add data/raw/NAME`` or ``dvc import-url`` needs no fetch entry. Archives
    stay packed; ingest reads them as they are.

    Args:
        dataset: name of the data set.
        sample: an embedded sample, made without network.
        path: a local folder, file or archive. A folder is synchronised: files of unchanged size and time stay as they
            are, others are copied, missing ones taken away. If it has a ``SHA256SUMS``, its files must agree with it.
            DVC does not watch the source: after a change there, ``dvc repro --force --single-item fetch@NAME``.
        urls: addresses, or mappings {url, sha256, md5, name} with a checksum to hold the file against and a relative
            path to write it to. http, https, s3, gs, ssh, sftp, file; see ``web.py`` and ``stores.py`` for logins.
        catalogue: a well-known data set of catalogue.yaml.
        max_bytes: largest size of one download, in bytes or such as 50 GB.
        timeout: seconds in which the next MiB of a download has to arrive. So it bounds a silence, and a file of n MiB
            takes n times that at most.

    Raises:
        ConfigurationError: no source, two sources, an unknown name, or an address that is wrong or needs a login.
        InputRefusedError: ``path`` is missing, empty or holds a link out of it; a download is too large or redirected
            to where it must not be.
        IntegrityError: a checksum is wrong.
        ServiceError: a download was cut, did not come in time or has no room; run again to go on.
    """
    where = f"fetch.{dataset}"
    source = {"sample": sample, "path": path, "urls": urls, "catalogue": catalogue}
    check_source(where, dataset=dataset, max_bytes=max_bytes, timeout=timeout, **source)
    target = Path("data/raw", dataset)
    former: dict[str, str] = {}
    with suppress(InputRefusedError):  # a damaged list of ours is made anew
        former = checksums.read(target)
    folders: set[str] = set()
    with _staging(dataset) as staging:
        if sample is not None:
            files = _make(sample, staging / "copies")
        elif path is not None:
            path = path.expanduser().resolve()
            published = checksums.read(path)
            files, folders = synchronise(path, target, staging / "copies", former)
            checksums.compare(path, published, {name: checksum for name, (_, checksum) in files.items()})
        else:
            files = {}
            for file in urls or entries()[catalogue].files:
                checksum = find(file, target / file.target)
                files[file.target] = (
                    (None, checksum) if checksum else download(file, staging / "downloads", max_bytes, timeout)
                )
        removed = _install(target, files, folders, former)
    new = sum(copy is not None for copy, _ in files.values())
    size = decimal(sum((target / name).stat().st_size for name in files))
    print(f"{target}: {len(files):,} files, {size}; {new:,} new, {removed:,} taken away")


def check_source(
    where: str,
    *,
    dataset: str,
    sample: str | None = None,
    path: Path | None = None,
    urls: list[File] | None = None,
    catalogue: str | None = None,
    **limits: Any,
) -> None:
    """Raises what ``fetch`` would raise for these arguments, before any work and without network."""
    given = {"sample": sample, "path": path, "urls": urls, "catalogue": catalogue}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ConfigurationError(
            f"{where}: give one of sample ({', '.join(SAMPLES)}), path, urls or catalogue ({', '.join(entries())}); "
            f"got {' and '.join(names) or 'none'}."
        )
    if sample is not None and sample not in SAMPLES:
        raise ConfigurationError(f"{where}: unknown sample {sample!r}. Samples: {', '.join(SAMPLES)}.")
    if catalogue is not None and catalogue not in entries():
        raise ConfigurationError(f"{where}: {catalogue!r} is not in the catalogue. It has: {', '.join(entries())}.")
    if urls is not None:
        check_files(where, urls)
    if path is not None:
        _check_path(where, dataset, path)


def _check_path(where: str, dataset: str, path: Path) -> None:
    address = re.match(r"([a-z][a-z0-9+]+):/(.*)", str(path))  # of two slashes Path keeps one
    if address:
        raise ConfigurationError(
            f"{where}: path is for a local folder or file; give {masked('://'.join(address.groups()))} as `urls`."
        )
    try:
        here, target = path.expanduser().resolve(), Path("data/raw", dataset).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a link to itself, a NUL
        raise ConfigurationError(f"{where}: path {str(path)!r} is none: {error}") from None
    if here == target or here in target.parents or target in here.parents:
        raise ConfigurationError(
            f"{where}: path {path} and data/raw/{dataset}, where the copy goes, lie in each other. Data that is there "
            f"already needs no fetch entry but `dvc add data/raw/{dataset}`."
        )
    if not here.exists() or (here.is_dir() and not any(here.iterdir())):
        raise InputRefusedError(f"{where}: path {path} ({here}) does not exist or is empty.")


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
    """Brings ``target`` to hold just these files and folders, and their list.

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
