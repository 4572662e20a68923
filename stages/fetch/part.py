"""Keeps the part of a file that a download has got so far, within limits of size and disk."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

from rich.filesize import decimal

from convoy.errors import InputRefusedError, ServiceError
from convoy.machine.progress import Transfer
from convoy.secrets import masked


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


def need_room(size: int, folder: Path) -> None:
    """Raises a ServiceError if ``size`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ServiceError(f"needs {decimal(size)} in {folder.resolve()}, which has {decimal(free)} left. Make room.")
