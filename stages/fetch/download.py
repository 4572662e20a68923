"""Downloads one file: limits, resumption after a cut, checksum.

What arrives is appended to ``<name>.part``. After a cut, a timeout or a kill the next run goes on where it ends, if the
server still has the same file; only a whole file that has its checksum leaves this module.
"""

from pathlib import Path

from convoy.checksums import digest, sha256
from convoy.errors import InputRefusedError, IntegrityError
from convoy.machine.progress import Transfer
from stages.fetch.addresses import File
from stages.fetch.part import Part


def download(file: File, staging: Path, max_bytes: int, timeout: float) -> tuple[Path, str]:
    """Gets ``file`` into ``staging``, going on with what an earlier run got.

    Args:
        file: what to get.
        staging: folder for unfinished downloads.
        max_bytes: largest size, in bytes.
        timeout: seconds in which the next MiB has to arrive.

    Returns:
        The path of the whole file in ``staging``, and its SHA-256.

    Raises:
        ConfigurationError: the address or the credentials are wrong, or not in the environment.
        InputRefusedError: it is too large, or redirected to where it must not be. Nothing of it is kept.
        IntegrityError: its checksum is wrong. Nothing of it is kept.
        ServiceError: it was cut or did not come in time. What came is kept for the next run.
    """
    address = file.address
    with Transfer(file.target) as progress:
        part = Part(staging / f"{file.target}.part", file.url, max_bytes, progress)
        if not part.is_whole:
            if not (part.validator or file.sha256 or file.md5):
                part.size = 0  # nothing could tell whether what comes now belongs to it
            # Here, since they take longer to import than most files to copy.
            if file.is_web:
                from stages.fetch.web import receive
            else:
                from stages.fetch.stores import receive
            try:
                receive(address, part, timeout)
            except InputRefusedError:
                part.discard()
                raise
            part.finish()
    checksum, wrong = _check(file, part.path)
    if wrong:
        part.discard()
        raise IntegrityError(
            f"{part.shown}: {wrong}. Nothing of the {part.size:,} bytes was kept. Either the file changed at its "
            "source, or the checksum in params.yaml is wrong."
        )
    return part.path, checksum


def find(file: File, path: Path) -> str | None:
    """Returns the SHA-256 of ``path`` if that exists and is, by its published checksums, ``file``; None otherwise."""
    if not (file.sha256 or file.md5) or not path.is_file():
        return None
    checksum, wrong = _check(file, path)
    return None if wrong else checksum


def _check(file: File, path: Path) -> tuple[str, str]:
    """Returns the SHA-256 of ``path``, and what is wrong with its checksums, or ""."""
    checksum = sha256(path)
    if file.sha256 and checksum != file.sha256.lower():
        return checksum, f"its SHA-256 is {checksum} and should be {file.sha256.lower()}"
    if file.md5 and (found := digest(path, "md5")) != file.md5.lower():
        return checksum, f"its MD5 is {found} and should be {file.md5.lower()}"
    return checksum, ""
