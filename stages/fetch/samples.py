"""Embedded samples, so that the pipeline runs without network: real data that installed libraries hold, and our own.

Each function fills an empty folder, always with the same bytes as long as the libraries are the same.
"""

import ast
import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from convoy.machine import workers

LIBRARIES = ("keras", "matplotlib", "mlflow", "numpy", "pandas", "prefect", "scipy", "sklearn")
SENTENCES = 1500  # per library
PROSE = re.compile(r"(?!.*---)[A-Z][a-z]*[ ,][A-Za-z0-9 ,;:'()-]+\.")  # one sentence without code, names and rulers
REVIEWS = Path(__file__).parent / "reviews.csv"
SUBJECTS = {"test": 12, "val": 9}  # of the sixty that reviews are about
MONTHS = (
    ("January", "janvier"), ("February", "février"), ("March", "mars"), ("April", "avril"), ("May", "mai"),
    ("June", "juin"), ("July", "juillet"), ("August", "août"), ("September", "septembre"), ("October", "octobre"),
    ("November", "novembre"), ("December", "décembre"),
)  # fmt: skip
NUMBERS = 3000  # of numbers, dates and prices each, less what was drawn twice
FRAMES, SIDE = 8, 16  # of a clip
# How far (rows, columns) a digit has moved in frame t; right angles turn clockwise into its contrary.
CIRCLE = np.rint(3 * np.stack([np.sin(np.arange(FRAMES) * np.pi / 4), np.cos(np.arange(FRAMES) * np.pi / 4)], 1))
LINE = np.arange(FRAMES)[:, None]
MOTIONS = {
    "down": LINE * (1, 0),
    "up": LINE * (-1, 0),
    "right": LINE * (0, 1),
    "left": LINE * (0, -1),
    "clockwise": CIRCLE,
    "anticlockwise": CIRCLE * (-1, 1),
}


def digits(target: Path) -> None:
    """Writes 1,797 handwritten digits as grey PNG files of 8x8 pixels, one folder per class, ``7/0042.png``.

    Source: the test set of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI), as it
    ships inside scikit-learn: 17 grey levels, here spread over 0..255.
    """
    for number, (picture, label) in enumerate(_handwritten()):
        folder = target / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:04d}.png")


def docs(target: Path) -> None:
    """Writes docs.csv: sentences from the docstrings of installed libraries; the label is the library.

    Sentences that name a library, or stand in two of them, are left out; of the others SENTENCES each are chosen by a
    checksum, as are the files that are read for them.
    """
    places = [Path(find_spec(library).submodule_search_locations[0]) for library in LIBRARIES]
    with workers.executor(False, __name__) as pool:
        found = dict(zip(LIBRARIES, workers.map_ahead(pool, _of_library, places), strict=True))
    counts: dict[str, int] = {}
    for sentences in found.values():
        for sentence in sentences:
            counts[sentence] = counts.get(sentence, 0) + 1
    rows = []
    for library, sentences in found.items():
        alone = sorted((sentence for sentence in sentences if counts[sentence] == 1), key=_digest)
        rows += [(sentence, library) for sentence in alone[:SENTENCES]]
    _write(target / "docs.csv", ("text", "label"), rows)


def reviews(target: Path) -> None:
    """Writes reviews.csv: 1,920 short reviews, written for this project; half of each subject's are positive.

    The split is by subject, so that a model is scored on subjects that it knows nothing about.
    """
    with REVIEWS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    subjects = sorted({row["subject"] for row in rows}, key=_digest)
    splits = [split for split, count in SUBJECTS.items() for _ in range(count)]
    split_of = dict(zip(subjects, splits, strict=False))
    table = [(row["text"], row["label"], split_of.get(row["subject"], "train"), row["subject"]) for row in rows]
    _write(target / "reviews.csv", ("text", "label", "split", "subject"), table)


def numbers(target: Path) -> None:
    """Writes numbers.csv: numbers, dates and prices in words, English (source) and French (target).

    No value stands there twice, so those of the test are none of the training. Source of the words: num2words.
    """
    from num2words import num2words

    rng = np.random.default_rng(0)
    values = set(range(100)) | {int(10 ** rng.uniform(2, 6)) for _ in range(NUMBERS)}  # as many of each length
    pairs = [(num2words(value), num2words(value, lang="fr")) for value in sorted(values)]
    dates = {(int(rng.integers(1, 29)), int(rng.integers(12)), int(rng.integers(1500, 2100))) for _ in range(NUMBERS)}
    for day, month, year in sorted(dates):
        english, french = MONTHS[month]
        first = "premier" if day == 1 else num2words(day, lang="fr")
        pairs.append(
            (
                f"the {num2words(day, to='ordinal')} of {english} {num2words(year, to='year')}",
                f"le {first} {french} {num2words(year, lang='fr')}",
            )
        )
    prices = {(int(10 ** rng.uniform(0.31, 4)), int(rng.integers(2, 100))) for _ in range(NUMBERS)}
    for whole, cents in sorted(prices):
        pairs.append(
            (
                f"{num2words(whole)} euros and {num2words(cents)} cents",
                f"{num2words(whole, lang='fr')} euros et {num2words(cents, lang='fr')} centimes",
            )
        )
    _write(target / "numbers.csv", ("source", "target"), list(dict.fromkeys(pairs)))


def clips(target: Path) -> None:
    """Writes 1,797 clips of 8 frames, 16x16 pixels, ``left/0042.npy``: a digit that moves in one of six ways.

    It starts anywhere and comes in again where it goes out, so no single frame tells how it moves. Source of the
    digits: see ``digits``.
    """
    rng = np.random.default_rng(0)
    for number, (picture, _) in enumerate(_handwritten()):
        name = list(MOTIONS)[rng.integers(len(MOTIONS))]
        canvas = np.zeros((SIDE, SIDE), np.uint8)
        canvas[4:12, 4:12] = picture
        start = rng.integers(0, SIDE, 2)
        moves = (start + MOTIONS[name]).astype(int)
        frames = np.stack([np.roll(canvas, move, (0, 1)) for move in moves])
        frames = np.clip(frames + rng.normal(0, 20, frames.shape), 0, 255).astype(np.uint8)
        (target / name).mkdir(exist_ok=True)
        np.save(target / name / f"{number:04d}.npy", frames)


def _handwritten() -> Iterator[tuple[np.ndarray, int]]:
    """Yields scikit-learn's digits, uint8 (8, 8), and what they are."""
    from sklearn.datasets import load_digits  # takes seconds, which other sources need not wait

    pictures, labels = load_digits(return_X_y=True)
    yield from zip(np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.tolist(), strict=True)


def _of_library(place: Path) -> list[str]:
    """Returns sentences of a library, each once: more than are wanted, as some stand in another library too."""
    files = (path.relative_to(place) for path in place.rglob("*.py"))
    files = (file for file in files if not {"tests", "testing", "_vendor"} & {*file.parts})
    sentences: dict[str, None] = {}
    for file in sorted(files, key=lambda file: _digest(file.as_posix())):
        sentences |= dict.fromkeys(_sentences(place / file))
        if len(sentences) >= 3 * SENTENCES:
            break
    return list(sentences)


def _sentences(path: Path) -> Iterator[str]:
    """Yields the sentences of 6 to 30 words in the docstrings of a file."""
    names = re.compile(rf"\b({'|'.join(LIBRARIES)}|scikit|pyplot)", re.I)
    statements: list[ast.AST] = [ast.parse(path.read_bytes())]
    while statements:
        node = statements.pop()
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):  # ast.walk would look at expressions too
            statements += getattr(node, part, ())
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                for sentence in re.split(r"(?<=\.)\s+", " ".join(paragraph.split())):
                    if PROSE.fullmatch(sentence) and 6 <= len(sentence.split()) <= 30 and not names.search(sentence):
                        yield sentence


def _digest(text: str) -> str:
    # Not the SHA-256 by which ingest splits: the first of these would all be test examples.
    return hashlib.sha256(f"sample {text}".encode()).hexdigest()


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


SAMPLES: dict[str, Callable[[Path], None]] = {
    "digits": digits, "docs": docs, "reviews": reviews, "numbers": numbers, "clips": clips,
}  # fmt: skip
