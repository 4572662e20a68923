"""What all kinds of data have in common: an example, and how one is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from convoy.data.shards import Arrays
from convoy.errors import InputRefusedError

UNEXPECTED = "cannot be decoded ("  # how the reason begins where a reader raised what it does not promise
REASON_CHARACTERS = 200  # of what the exception says
Payload = bytes | str | tuple[str, ...] | np.ndarray


@dataclass(frozen=True, slots=True)
class Example:
    """One example, decoded and checked.

    Attributes:
        content: SHA-256 (32 bytes) of what it shows, before it was brought to one size.
        arrays: what is stored, without the first axis; a text as a str.
        facts: what the manifest says of it, e.g. its original height and width; the same keys for every example.
        fingerprint: uint8 vector by which near copies are found (``duplicates.py``); zeros: takes no part; None for
            every example: near copies are not looked for.
    """

    content: bytes
    arrays: Arrays | dict[str, str]
    facts: dict[str, int | str]
    fingerprint: np.ndarray | None = None


def decode_with(kind: str, data: list[bytes] | Payload, options: Mapping[str, Any]) -> Example:
    """Returns one example, decoded by the reader ``kind``.

    Libraries raise nearly anything at hostile bytes, and one example must not end a run, or a server. So every
    exception of a reader becomes a refusal of that example. A defect of a reader refuses most examples, which
    ``max_bad`` does not let pass.

    Raises:
        InputRefusedError: it cannot be decoded. The message is the reader's own reason, or begins with UNEXPECTED and
            names the exception.
        MemoryError: as the reader raised it: the cause is this machine, and the example may be fine.
    """
    decode = import_module(f"convoy.kinds.{kind}").decode
    try:
        return decode(data, **options)
    except (InputRefusedError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:REASON_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        raise InputRefusedError(f"{UNEXPECTED}{type(error).__name__}): {text}") from error
