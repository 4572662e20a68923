"""Pairs of sentences: how one is read, and what is stored of it."""

import hashlib

from convoy.errors import InputRefusedError
from convoy.kinds.base import Example, Kind
from convoy.kinds.fingerprints import text_fingerprint
from convoy.kinds.text import facts, normalised, pack, prepare

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


KIND = Kind(
    name="translation",
    noun="sentence pair",
    arrays=SIDES,
    decode=decode,
    prepare=prepare,
    pack=pack,
    sent="string",
    reads="A sentence in the source language; of longer ones the first {length} tokens are read.",
    truth="target",
    metric="bleu",
    objective="val_loss",
    answers={"translation": "string", "probability": "double"},
    per_class=10,
)
