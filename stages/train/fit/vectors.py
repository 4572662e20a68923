"""Word vectors of the user's own: GloVe's and fastText's text files, word2vec's where it was saved as text."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError, InputRefusedError


def load(path: Path, embedding: keras.layers.Embedding, vocabulary: Vocabulary) -> None:
    """Puts the vectors of the words of ``vocabulary`` into ``embedding``; others keep their random ones.

    Each line is a word and its numbers, with spaces between; a first line of two numbers (words, length) may stand
    above. ``.gz`` is unpacked on the way, a line at a time.

    Raises:
        ConfigurationError: the file is missing, or its vectors have another length than the embedding.
        InputRefusedError: it is no such file, is damaged, or has none of the words.
    """
    if not path.is_file():
        raise ConfigurationError(f"word_vectors: {path} is missing.")
    weights = np.array(embedding.get_weights()[0])
    found: set[int] = set()
    for number, line in enumerate(_lines(path), start=1):
        word, *numbers = line.rstrip().split(b" ")
        if number == 1 and len(numbers) == 1 and word.isdigit():
            continue
        try:
            pieces = vocabulary.split(word.decode("utf-8"))
        except UnicodeDecodeError:
            raise InputRefusedError(f"{path}, line {number}: not UTF-8 text; save word2vec's as text.") from None
        place = vocabulary.pieces.get(pieces[0]) if len(pieces) == 1 else None
        if place is None or place in found:  # "The" after "the": files have the most frequent form first
            continue
        if len(numbers) != weights.shape[1]:
            raise ConfigurationError(
                f"{path}, line {number}: a vector of {len(numbers)} numbers; the embedding has {weights.shape[1]} "
                f"(sizes: {{embedding: {len(numbers)}}})."
            )
        try:
            weights[place] = [float(value) for value in numbers]
        except ValueError as error:
            raise InputRefusedError(f"{path}, line {number}: {error}") from None
        if not np.isfinite(weights[place]).all():
            raise InputRefusedError(f"{path}, line {number}: a number is not finite.")
        found.add(place)
    if not found:
        raise InputRefusedError(f"{path} has none of the {len(vocabulary.pieces):,} words.")
    embedding.set_weights([weights])
    print(f"{path}: vectors of {len(found):,} of {len(vocabulary.pieces):,} words")


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except (OSError, EOFError, zlib.error) as error:
            raise InputRefusedError(f"{path} is damaged: {error}") from None
