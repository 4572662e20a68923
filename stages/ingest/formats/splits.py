"""The split that a file belongs to."""

import re
from collections.abc import Mapping

from stages.ingest.formats.folders import SPLIT_FOLDERS

PREFIX = re.compile(rf"({'|'.join(sorted(SPLIT_FOLDERS, key=len, reverse=True))})(?![a-z])", re.I)


def split_of(file: str, chosen: Mapping[str, str]) -> str | None:
    """Returns train, val or test for a file; None: nothing says so.

    What params.yaml says, else the word with which its name begins (``train.csv``, ``test_2016_flickr.en.gz``,
    ``validation-00000-of-00002.parquet``), else the folder in which it lies (``dev/part1.csv``).

    Args:
        file: path relative to the raw folder.
        chosen: file -> split, from params.yaml.
    """
    if file in chosen:
        return chosen[file]
    *folders, name = file.split("/")
    match = PREFIX.match(name)
    words = [match[1]] if match else folders[::-1]
    return next((SPLIT_FOLDERS[word.lower()] for word in words if word.lower() in SPLIT_FOLDERS), None)
