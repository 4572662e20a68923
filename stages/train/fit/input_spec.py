"""The input spec of a model, and the examples: how raw data becomes what the network computes with."""

from pathlib import Path
from typing import Any

import numpy as np

from convoy.data.shards import Shards
from convoy.data.vocabulary import Vocabulary
from convoy.files import read_sealed
from stages.train.entry import ARRAYS, Train

LONGEST = 4096  # tokens that are read of a text where an entry does not say; bounds memory


def open_inputs(model: str, entry: Train, verify: bool = True) -> tuple[Shards, Shards, dict[str, Any]]:
    """Returns the training and validation examples, and the input spec of a model; see ``make_input_spec``.

    Args:
        model: name of the entry in params.yaml.
        entry: the entry.
        verify: compare the shards with their checksums.

    Raises:
        InputRefusedError: the data is not there yet.
        ConfigurationError: the entry does not fit the data.
    """
    where = f"params.yaml, train.{model}"
    entry.check(where, model)
    about = read_sealed(Path("data/augment", entry.dataset, "about.json"))
    entry.check_kind(where, about["kind"])
    places = (Path("data/augment", entry.dataset, "train"), Path("data/ingest", entry.dataset, "val"))
    data, val = (Shards(place, verify=verify) for place in places)
    return data, val, make_input_spec(about, data, entry, where)


def make_input_spec(about: dict[str, Any], data: Shards, entry: Train, where: str) -> dict[str, Any]:
    """Returns the content of input.json: all that turns a raw example into what a model of this data set takes.

    ``kind``; of pictures and volumes ``array`` and how they were prepared (size, mode, fit); of texts their vocabulary
    ``text``, of pairs those of ``source`` and ``target``, and ``length`` in tokens; ``classes``, if there are any.

    Args:
        about: about.json of the augmented data.
        data: training examples.
        entry: says how texts are read.
        where: begins the message of an error.
    """
    kind, tokens = about["kind"], entry.tokens
    input_spec = {"kind": kind, "classes": about["classes"]}
    if kind in ARRAYS:
        return input_spec | {"array": ARRAYS[kind], **about["options"]}
    columns = about["vocabulary"]
    if kind == "translation" and tokens == "words":
        print("words of a translation are joined by spaces; subwords give a text back as it is written")
    case = entry.case or kind == "translation"  # what is learned to be written is compared with what people wrote
    chosen = {
        column: Vocabulary.chosen(stored, tokens, entry.vocabulary, entry.min_count, case, where)
        for column, stored in columns.items()
    }
    lengths = np.concatenate([known.encode(data.texts(column)).lengths for column, known in chosen.items()])
    length = entry.length or min(int(lengths.max()), LONGEST)
    if cut := int((lengths > length).sum()):
        print(f"length = {length} {tokens}: {cut:,} of {len(lengths):,} training texts are longer and are cut off")
    return input_spec | {"length": length} | {column: known.to_json() for column, known in chosen.items()}
