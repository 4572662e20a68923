"""Texts as numbers: vocabularies of words, characters and subwords, and rows of different length.

augment builds a vocabulary on training texts alone and stores it with the data. A model chooses its unit and size
(train). The choice travels with the model, so prediction cannot read a text in another way.

Rules, the same for all: a text is normalised to Unicode form NFKC. Words and characters are compared without case,
unless the model keeps it. A word is a run of letters, their marks and digits, an apostrophe with what follows it, or
any other sign by itself. In languages without spaces, such as Chinese or Thai, characters or subwords serve better.
Tokens outside the vocabulary become UNKNOWN. Texts are cut off at the model's length and filled up with PAD, which no
network sees.
"""

import base64
import io
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from convoy.errors import ConfigurationError

Unit = Literal["words", "characters", "subwords"]

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL = 4  # numbers below it are none of the vocabulary's
MASK = "\N{REPLACEMENT CHARACTER}"  # what stands for a masked word in an augmented text; never in a vocabulary
# \w has no combining marks, which stand within the words of many scripts (category M; above 0x1F000 are no letters).
MARKS = np.array([code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"])
# As ranges, and spaces first, since Python's re compares with each item of a set beyond 0xFFFF, one after another.
RUNS = np.split(MARKS, np.flatnonzero(np.diff(MARKS) != 1) + 1)
LETTERS = r"\w" + "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in RUNS)
WORD = re.compile(rf"(?!\s)(?:[{LETTERS}]+|(?<=[{LETTERS}])['’][{LETTERS}]+|[^{LETTERS}])")
MOST = 100_000  # words or characters that are stored; the rarer ones are left out
SENTENCES = 1_000_000  # subwords are learned from the first ones, at most as many; bounds time and memory
MULTIPLE = 4  # lengths of batches are multiples of it, so that few differ


@dataclass(frozen=True)
class Ragged:
    """Rows of tokens of different length, in one array; four bytes a token.

    Attributes:
        flat: int32, all rows one after another.
        ends: int64, shape (rows,).
    """

    flat: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], length: int | None) -> "Ragged":
        """Stores ``rows``, each cut off at ``length``; takes one at a time, and little more memory than they do."""
        flat, ends = array("i"), array("q")
        for row in rows:
            flat.extend(row[:length])
            ends.append(len(flat))
        return cls(np.frombuffer(flat, np.int32), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.ends[row - 1] if row else 0 : self.ends[row]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.diff(self.ends, prepend=0)


class Vocabulary:
    """The tokens that one model knows of one kind of text.

    Args:
        unit: words, characters or subwords.
        pieces: the words or characters, of the numbers SPECIAL, SPECIAL + 1, ...; () for subwords.
        model: of sentencepiece, for subwords.
        case: "The" is another word than "the".
    """

    def __init__(self, unit: Unit, pieces: Sequence[str] = (), model: bytes = b"", case: bool = False) -> None:
        self.unit, self._pieces, self._model, self._case = unit, list(pieces), model, case
        self._numbers = {piece: number for number, piece in enumerate(self._pieces, SPECIAL)}

    @classmethod
    def chosen(
        cls, stored: dict[str, Any], unit: Unit, most: int | None, min_count: int, case: bool, where: str
    ) -> "Vocabulary":
        """Takes one unit of what ``describe`` found: the ``most`` frequent that occur at least ``min_count`` times.

        Raises:
            ConfigurationError: the data set has no subwords; or nothing is that frequent. Begins with ``where``.
        """
        if unit == "subwords":
            if stored["subwords"] is None:
                raise ConfigurationError(f"{where}: its data set has no subwords; give augment a number of them.")
            return cls(unit, model=base64.b64decode(stored["subwords"]))
        counts: Counter[str] = Counter()
        for piece, count in stored[unit]:
            counts[piece if case else piece.casefold()] += count
        pieces = [piece for piece, count in _ordered(counts) if count >= min_count][:most]
        if not pieces:
            raise ConfigurationError(f"{where}: none of the {unit} occurs min_count = {min_count} times.")
        return cls(unit, pieces, case=case)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Vocabulary":
        """Reads what ``to_json`` gave."""
        return cls(content["unit"], content["pieces"], base64.b64decode(content["model"]), content["case"])

    def to_json(self) -> dict[str, Any]:
        """Returns all of it, for ``from_json``."""
        model = base64.b64encode(self._model).decode()
        return {"unit": self.unit, "pieces": self._pieces, "model": model, "case": self._case}

    def __len__(self) -> int:
        """How many numbers there are, the special ones included."""
        return len(self._subwords) if self._model else SPECIAL + len(self._pieces)

    @property
    def pieces(self) -> dict[str, int]:
        """Word or character -> number."""
        return self._numbers

    def encode(self, texts: Iterable[str], length: int | None = None) -> Ragged:
        """Returns the tokens of ``texts``, each cut off at ``length``."""
        if self._model:
            return Ragged.of(map(self._encode, texts), length)
        rows = map(self.split, texts)
        return Ragged.of(([self._numbers.get(piece, UNKNOWN) for piece in row] for row in rows), length)

    def split(self, text: str) -> list[str]:
        """Returns the words or characters of a text, as this vocabulary would have them."""
        return split(text, self.unit, self._case)

    def _encode(self, text: str) -> list[int]:
        """Returns the subwords of a text. sentencepiece itself takes MASK for a space."""
        first, *others = self._subwords.encode(text.split(MASK))
        return first + [token for part in others for token in (UNKNOWN, *part)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of ``tokens``, none of them special but UNKNOWN; words are joined by spaces."""
        if self._model:
            return self._subwords.decode([int(token) for token in tokens])
        pieces = [self._pieces[token - SPECIAL] if token >= SPECIAL else MASK for token in tokens]
        return ("" if self.unit == "characters" else " ").join(pieces)

    def shown(self, tokens: Iterable[int]) -> list[str]:
        """Returns each token as a text, for people."""
        if self._model:
            return [self._subwords.id_to_piece(int(token)) for token in tokens]
        names = ("", "?", "^", "$")
        return [self._pieces[token - SPECIAL] if token >= SPECIAL else names[token] for token in tokens]

    @cached_property
    def _subwords(self) -> Any:
        import sentencepiece  # worth its start-up only where it is used

        return sentencepiece.SentencePieceProcessor(model_proto=self._model)


def split(text: str, unit: Literal["words", "characters"], case: bool = False) -> list[str]:
    """Returns the words or characters of a text in Unicode form NFKC, without case unless it is kept."""
    text = unicodedata.normalize("NFKC", text)
    pieces = WORD.findall(text) if unit == "words" else list(text)
    # Not the text: folding may take a sign apart, so that other pieces would be found than were counted with case.
    return pieces if case else [piece.casefold() for piece in pieces]


def describe(texts: Iterable[str], subwords: int | None) -> dict[str, Any]:
    """Returns what ``texts`` consist of, most frequent first, for ``Vocabulary.chosen``.

    ``words`` and ``characters``, with case, are pairs of one and its count; ``subwords`` is a model of sentencepiece:
    byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) of about so many pieces, with case; None without.

    Raises:
        ConfigurationError: sentencepiece cannot make so many subwords of these texts.
    """
    counts: dict[str, Counter[str]] = {"words": Counter(), "characters": Counter()}
    learned: list[str] = []
    for text in texts:
        for unit, counter in counts.items():
            counter.update(split(text, unit, case=True))
        if subwords and len(learned) < SENTENCES:
            learned.append(text)
    found: dict[str, Any] = {}
    for unit, counter in counts.items():
        found[unit] = [[piece, count] for piece, count in _ordered(counter)[:MOST] if piece != MASK]
    found["subwords"] = base64.b64encode(_learn(learned, subwords)).decode() if subwords else None
    return found


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    """Returns the most frequent first; ties by themselves, not by when they came."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _learn(texts: Iterable[str], size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=size,
            hard_vocab_limit=False, character_coverage=1.0, pad_id=PAD, unk_id=UNKNOWN, bos_id=BEGIN, eos_id=END,
            num_threads=1, minloglevel=2, max_sentence_length=2**20,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(f"subwords = {size}: {str(error).splitlines()[-1]}") from None
    return model.getvalue()


def pad(rows: Sequence[np.ndarray], length: int | None = None) -> np.ndarray:
    """Returns ``rows`` as int32 (rows, time), filled up with PAD to ``length``; by default a MULTIPLE of tokens."""
    longest = max(1, *(len(row) for row in rows)) if len(rows) else 1
    result = np.full((len(rows), length or -(-longest // MULTIPLE) * MULTIPLE), PAD, np.int32)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return result


def by_length(lengths: np.ndarray, order: np.ndarray, batch: int, pool: int = 50) -> Iterator[np.ndarray]:
    """Yields batches of rows of similar length, so that little padding is computed.

    ``pool`` batches at a time of the given ``order`` are sorted by length and cut; so batches stay a matter of chance.
    """
    for start in range(0, len(order), batch * pool):
        chosen = order[start : start + batch * pool]
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        yield from (chosen[first : first + batch] for first in range(0, len(chosen), batch))
