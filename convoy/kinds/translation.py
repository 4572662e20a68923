"""Pairs of sentences: how one is read, and what is stored of it."""

import hashlib

from convoy.errors import InputRefusedError
from convoy.kinds.base import Example
from convoy.kinds.fingerprints import text_fingerprint
from convoy.kinds.text import facts, normalised

SIDES = ("source", "target")


def decode(data: tuple[str, str], **_: object) -> Example:
    """Checks one pair; arrays: ``source`` and ``target``.

    Raises:
        InputRefusedError: a side is empty, too long, or has a NUL.
    """
    sides, told = {}, {}
    for side, text in zip(SIDES, data, strict=True):
        try:
            sides[side] = normalised(text)
        except InputRefusedError as refusal:
            raise InputRefusedError(f"the {side}: {refusal}") from None
        told |= {f"{side}_{name}": value for name, value in facts(sides[side]).items()}
    content = hashlib.sha256("\0".join(sides.values()).encode()).digest()  # a side has no NUL
    return Example(content, sides, told, text_fingerprint("\n".join(sides.values())))
