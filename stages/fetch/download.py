"""Downloads one file: limits, resumption after a cut, checksum.

What arrives is appended to ``<name>.part``. After a cut, a timeout or a kill the next run goes on where it ends, if the
server still has the same file; only a whole file that has its checksum leaves this module.
"""

import errno
import hashlib
import json
import shutil
from pathlib import Path

from rich.filesize import decimal

from convoy.checksums import digest, sha256
from convoy.errors import InputRefusedError, IntegrityError, ServiceError
from convoy.machine.progress import Transfer
from convoy.secrets import masked
from stages.fetch.addresses import File


class Part:
    """The bytes of a download so far, and in ``<name>.part.json`` what they are the beginning of.

    Attributes:
        path: the file of the bytes.
        shown: the address, fit for a message.
        size: bytes so far.
        total: bytes of the whole file; None while unknown.
        validator: by which the server tells versions of the file apart; None if it does not.
    """

    def __init__(self, path: Path, url: str, max_bytes: int, progress: Transfer) -> None:
        self.path, self.shown = path, masked(url)
        self._facts, self._max_bytes, self._progress = path.with_name(f"{path.name}.json"), max_bytes, progress
        self._url = hashlib.sha256(url.encode()).hexdigest()
        self.size, self.total, self.validator = 0, None, None
        try:
            facts = json.loads(self._facts.read_text())
            if facts["url"] == self._url:
                self.size, self.total, self.validator = path.stat().st_size, facts["total"], facts["validator"]
        except (FileNotFoundError, ValueError, KeyError):
            pass  # nothing, or nothing usable, was kept: from the start

    @property
    def is_whole(self) -> bool:
        """Whether an earlier run got all of it."""
        return self.size == self.total

    def begin(self, total: int | None, validator: str | None, keep: bool) -> None:
        """Gets ready to receive.

        Args:
            total: bytes of the whole file; None if the server does not say.
            validator: by which the server will know this version of the file again.
            keep: the bytes so far are of this version; otherwise they are dropped.

        Raises:
            InputRefusedError: it is larger than ``max_bytes``.
            ServiceError: there is no room for it.
        """
        self._refuse_above(total or 0)
        self.size, self.total, self.validator = self.size if keep else 0, total, validator
        self.path.parent.mkdir(parents=True, exist_ok=True)
        need_room((total or 0) - self.size, self.path.parent)
        with self.path.open("ab") as file:
            file.truncate(self.size)
        self._note()
        self._progress.begin(total, self.size)

    def write(self, data: bytes) -> None:
        """Appends ``data``.

        Raises:
            InputRefusedError: that makes it larger than ``max_bytes``.
            ServiceError: the disk is full.
        """
        self._refuse_above(self.size + len(data))
        try:
            with self.path.open("ab", buffering=0) as file:  # a kill loses nothing that was written
                file.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ServiceError(
                f"{self.shown}: the disk is full after {decimal(self.size)}, in {self.path.parent}. Make room and run "
                "again; it goes on from there."
            ) from error
        self.size += len(data)
        self._progress.advance(len(data))

    def finish(self) -> None:
        """Notes that this was all."""
        self.total = self.size
        self._note()

    def discard(self) -> None:
        """Keeps nothing of it."""
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _note(self) -> None:
        self._facts.write_text(json.dumps({"url": self._url, "total": self.total, "validator": self.validator}))

    def _refuse_above(self, size: int) -> None:
        if size > self._max_bytes:
            raise InputRefusedError(
                f"{self.shown} is larger than max_bytes ({decimal(self._max_bytes)}): {decimal(size)} or more. Nothing "
                "of it was kept. If that is right, raise max_bytes."
            )


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


def need_room(size: int, folder: Path) -> None:
    """Raises a ServiceError if ``size`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ServiceError(f"needs {decimal(size)} in {folder.resolve()}, which has {decimal(free)} left. Make room.")
