"""What all kinds of data have in common: what is known of one, an example, and how an example is decoded.

A kind is a file beside this one that defines ``KIND``. Its name stands as ``kind`` in params.yaml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convoy.data.shards import Arrays
from convoy.errors import ConfigurationError, InputRefusedError

UNEXPECTED = "cannot be decoded ("  # how the reason begins where a reader raised what it does not promise
REASON_CHARACTERS = 200  # of what the exception says
Payload = bytes | str | tuple[str, ...] | np.ndarray
Raw = bytes | str | list[bytes]  # what a user sends to a served model; a list holds the files of one example


def find(folder: Path) -> tuple[str, ...]:
    """Returns the names of the kinds whose files lie in ``folder``, which are read and not imported.

    Each kind has libraries of its own, and a process needs one kind.
    """
    return tuple(sorted(file.stem for file in folder.glob("*.py") if "\nKIND = " in file.read_text("utf-8")))


NAMES = find(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Example:
    """One example, decoded and checked.

    Attributes:
        content: SHA-256 (32 bytes) of what it shows, before it was resized.
        arrays: what is stored, without the first axis; a text as a str.
        facts: what the manifest says of it, e.g. its original height and width; the same keys for every example.
        fingerprint: uint8 vector by which near copies are found (``duplicates.py``); zeros: takes no part; None for
            every example: near copies are not looked for.
    """

    content: bytes
    arrays: Arrays | dict[str, str]
    facts: dict[str, int | str]
    fingerprint: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All that is known about a kind of data. The defaults are those of a kind whose examples have classes.

    Attributes:
        name: as in params.yaml.
        noun: one example, for people; ``page.many`` makes the plural.
        arrays: names of what is stored of an example. The first is also the column of raw examples.
        decode: raw -> Example; its arguments are the options of ingest.
        prepare: raw example, input.json -> what ingest would store of it, to be predicted.
        pack: stored example -> the same as a user would send it.
        axes: number of axes of ``size``, the size of every stored example; 0: examples have no size.
        sent: MLflow's type of a raw example.
        endings: of files that hold one example each; none where examples are lines, or rows of tables.
        reads: what a served model reads, for people; with the fields size, mode or length of input.json.
        truth: column of predictions.parquet with the right answer.
        metric: the main one; see ``scores.main``.
        objective: column of history.csv by which a search chooses.
        answers: column -> MLflow's type of what a served model answers.
        per_class: examples that ingest's gallery shows of a class: they fill one line or two.
        errors: wrong answers that the report of evaluate shows; keeps the page small.
        explained: how many right answers, and how many wrong ones, evaluate explains.
    """

    name: str
    noun: str
    arrays: tuple[str, ...]
    decode: Callable[..., Example]
    prepare: Callable[[Raw, Mapping[str, Any]], np.ndarray | str]
    pack: Callable[[Any], bytes | str]
    sent: Literal["binary", "string"]
    reads: str
    axes: int = 0
    endings: tuple[str, ...] = ()
    truth: str = "label"
    metric: str = "accuracy"
    objective: str = "val_accuracy"
    answers: dict[str, str] = field(
        default_factory=lambda: {"label": "string", "probability": "double", "probabilities": "map"}
    )
    per_class: int
    errors: int = 0
    explained: tuple[int, int] = (0, 0)

    @property
    def column(self) -> str:
        """The column of raw examples, and the array that a network reads."""
        return self.arrays[0]

    @property
    def is_text(self) -> bool:
        """Whether examples are texts, which are divided into tokens."""
        return self.sent == "string"

    @property
    def has_classes(self) -> bool:
        """Whether an answer is one of the classes; else it is a text."""
        return self.truth == "label"


def get(name: str) -> Kind:
    """Returns a kind.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in NAMES:  # it may come from a registry, which others may write
        raise ConfigurationError(f"there is no kind of data {name!r}. Allowed: {', '.join(NAMES)}.")
    return import_module(f"convoy.kinds.{name}").KIND


def decode_with(kind: str, data: list[bytes] | Payload, options: Mapping[str, Any]) -> Example:
    """Returns one example, decoded by the reader of ``kind``.

    Libraries raise nearly anything at hostile bytes, and one example must not end a run, or a server. So every
    exception of a reader becomes a refusal of that example. A defect of a reader refuses most examples, which
    ``max_bad`` does not let pass.

    Raises:
        InputRefusedError: it cannot be decoded. The message is the reader's own reason, or begins with UNEXPECTED and
            names the exception.
        MemoryError: as the reader raised it: the cause is this machine, and the example may be fine.
    """
    decode = get(kind).decode
    try:
        return decode(data, **options)
    except (InputRefusedError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:REASON_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        raise InputRefusedError(f"{UNEXPECTED}{type(error).__name__}): {text}") from error


def prepare_file(kind: str, raw: Raw, takes: Mapping[str, Any]) -> np.ndarray:
    """Returns what ingest would store of an example that is a file, or several, and has a size.

    Args:
        kind: its name.
        raw: the bytes of a file, or of each file.
        takes: what the model takes; the content of its input.json.

    Raises:
        InputRefusedError: it cannot be read; the message says why.
    """
    if not isinstance(raw, bytes | list):
        raise InputRefusedError(f"is {type(raw).__name__}, not the bytes of a file")
    options = {key: takes[key] for key in ("size", "mode", "fit")}
    return decode_with(kind, [raw] if isinstance(raw, bytes) else raw, options).arrays[takes["array"]]
