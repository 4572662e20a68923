"""Texts: how one is read, and what is stored of it."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from convoy.errors import InputRefusedError
from convoy.kinds import encodings
from convoy.kinds.base import Example, Kind, Raw
from convoy.kinds.fingerprints import text_fingerprint

CHARACTERS = 1_000_000  # of one text; the longest novels have three times as many
# In a row. Sorting n of them takes time in n * n; Unicode's own limit for streams is 30 (UAX #15).
MANY_MARKS = 100
MARKS = re.compile(
    f"[{''.join(mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.combining(mark))}]{{{MANY_MARKS + 1}}}"
)


def decode(data: list[bytes] | str, *, encoding: str | None = None) -> Example:
    """Checks one text; arrays: ``text``.

    Raises:
        InputRefusedError: it is empty, too long, has a NUL, or is not in its ``encoding``.
    """
    text = normalised(data if isinstance(data, str) else encodings.decode(data[0], encoding))
    content = hashlib.sha256(text.encode()).digest()
    return Example(content, {"text": text}, facts(text), text_fingerprint(text))


def normalised(text: str) -> str:
    """Returns ``text`` in Unicode form NFC, each run of whitespace as one space, none around it, no control characters.

    Raises:
        InputRefusedError: nothing is left, or too much; or it has a NUL.
    """
    if "\0" in text:
        raise InputRefusedError("it has a NUL, so it is no text, or in another encoding (UTF-16?)")
    if not text.isascii() and MARKS.search(text):
        raise InputRefusedError(f"it has more than {MANY_MARKS} combining marks in a row")
    text = unicodedata.normalize("NFC", " ".join(text.split()))  # U+0085 and the like are whitespace
    if not text.isprintable():
        text = "".join(character for character in text if unicodedata.category(character) != "Cc")
        text = " ".join(text.split())
    if not text:
        raise InputRefusedError("it is empty")
    if len(text) > CHARACTERS:
        raise InputRefusedError(f"it has {len(text):,} characters; allowed are {CHARACTERS:,}")
    return text


def facts(text: str) -> dict[str, int | str]:
    """Returns characters, words (between spaces), and the script of most letters, e.g. LATIN or CYRILLIC."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[_script(character)] += count
    return {
        "characters": len(text),
        "words": text.count(" ") + 1,
        "script": scripts.most_common(1)[0][0] if scripts else "none",
    }


@lru_cache(2**12)
def _script(letter: str) -> str:
    """Returns the first word of the name that Unicode gives to a letter."""
    return unicodedata.name(letter, "none").partition(" ")[0].partition("-")[0]


def prepare(raw: Raw, _: Mapping[str, Any]) -> str:
    """Returns what ingest would store of the text ``raw``.

    Raises:
        InputRefusedError: it is no text, or as ``normalised``.
    """
    if not isinstance(raw, str):
        raise InputRefusedError(f"is {type(raw).__name__}, not a text")
    return normalised(raw)


def pack(stored: str) -> str:
    """Returns a stored text as it is."""
    return stored


KIND = Kind(
    name="text",
    noun="text",
    arrays=("text",),
    decode=decode,
    prepare=prepare,
    pack=pack,
    sent="string",
    reads="A sentence; of longer texts the first {length} tokens are read.",
    per_class=5,
    errors=20,
    explained=(6, 4),
)
