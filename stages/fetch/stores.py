"""s3, gs, ssh, sftp and file, through fsspec.

Options come from where these libraries look for them by themselves: AWS's and Google's environment variables and files
(``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``), ``~/.ssh/config`` with its keys and
``~/.ssh/known_hosts``, and fsspec's own (``~/.config/fsspec/*.json``, ``FSSPEC_S3_ENDPOINT_URL``).
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from convoy.errors import ConfigurationError, ServiceError, StageError
from convoy.secrets import mask_in
from stages.fetch.part import Part

PIECE = 8 * 2**20  # bytes of one request: an object store answers each a little late

Answer = TypeVar("Answer")


def receive(url: str, part: Part, timeout: float) -> None:
    """Appends to ``part`` what it lacks of ``url``.

    Raises:
        ConfigurationError: there is no such file, or not for this user; or it is a folder.
        InputRefusedError: it is too large.
        ServiceError: no answer, a cut, or an answer (of 8 MiB at most) took longer than ``timeout`` seconds.
    """
    try:
        _receive(url, part, timeout)
    except StageError:
        raise
    except TimeoutError:
        raise ServiceError(f"{part.shown}: no answer within {timeout:g} s (timeout). Run again to go on.") from None
    except (FileNotFoundError, PermissionError, ImportError) as error:
        raise ConfigurationError(f"{part.shown}: {_say(error, url)}") from None
    except Exception as error:  # each store has errors of its own
        raise ServiceError(f"{part.shown}: {_say(error, url)}. Run again to go on.") from None


def _receive(url: str, part: Part, timeout: float) -> None:
    options = {"skip_instance_cache": True}
    if urlsplit(url).scheme in ("ssh", "sftp"):
        options["known_hosts"] = ()  # ~/.ssh/known_hosts; sshfs would trust any host
    system, path = _within(timeout, fsspec.core.url_to_fs, url, **options)
    info = _within(timeout, system.info, path)
    if info["type"] != "file":
        raise ConfigurationError(
            f"{part.shown} is a {info['type']}, not a file. Give its files' addresses, or use `dvc import-url`."
        )
    version = [info.get(key) for key in ("size", "ETag", "etag", "md5Hash", "LastModified", "updated", "mtime")]
    validator = str(version)
    part.begin(info["size"], validator, keep=part.validator == validator)
    with _within(timeout, system.open, path, "rb", block_size=PIECE, cache_type="none") as stream:
        stream.seek(part.size)
        while part.size < info["size"]:
            data = _within(timeout, stream.read, min(PIECE, info["size"] - part.size))
            if not data:
                raise ServiceError(
                    f"{part.shown}: cut after {part.size:,} of {info['size']:,} bytes. Run again to go on."
                )
            part.write(data)


def _within(timeout: float, ask: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
    """Returns what ``ask`` does, or raises a TimeoutError; a thread that still waits then ends with the process."""
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask(*arguments, **options))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()
    return answer.result(timeout)


def _say(error: Exception, url: str) -> str:
    return f"{type(error).__name__}: {mask_in(str(error), url)}"
