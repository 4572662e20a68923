import gzip
import hashlib
from collections import Counter

import pytest

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import translation
from stages.ingest.finders import translation as finder
from stages.ingest.records import Source

NAMES = {"source": "en", "target": "de"}


def found(folder, raw=None, **options):
    """Returns [(path, split, pair or problem)] of the examples in these files."""
    for name, content in (raw or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    items = list(finder.find(Source(folder, **options)))
    assert {item.label for item in items} <= {None}
    return [(item.path, item.split, item.problem or item.payload) for item in items]


@pytest.mark.parametrize(
    "form", ["{split}.{side}", "{split}.{side}.gz", "{split}.{side}.txt", "{split}/corpus.en-de.{side}"]
)
def test_the_lines_of_two_files_are_pairs(tmp_path, form):
    files = {}
    for split in ("test", "train"):
        for side, content in (("en", "one\ntwo\u2028three\n"), ("de", "eins\r\nzwei\u2028drei"), ("fr", "un\n")):
            name = form.format(split=split, side=side)
            files[name] = gzip.compress(content.encode()) if name.endswith(".gz") else content
    items = found(tmp_path, files | {"README": "x"}, columns=NAMES)
    names = [form.format(split=split, side="en") for split in ("test", "train")]
    assert items == [
        (f"{name}#{number}", split, pair)
        for name, split in zip(names, ("test", "train"), strict=True)
        for number, pair in ((1, ("one", "eins")), (2, ("two\u2028three", "zwei\u2028drei")))
    ]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("x.csv", "source,target\nGo.,Va !\n", {}),
        ("x.tsv", "en\tfr\nGo.\tVa !\n", {"source": "en", "target": "fr"}),
        ("x.jsonl", '{"src": "Go.", "tgt": "Va !"}\n', {}),
        (
            "x.jsonl",
            '{"translation": {"en": "Go.", "fr": "Va !"}}',
            {"source": "translation.en", "target": "translation.fr"},
        ),
        ("fra.txt", "Go.\tVa !\tCC-BY 2.0 (France)\n", {"source": 0, "target": 1}),  # Tatoeba
    ],
)
def test_tables_hold_pairs(tmp_path, name, content, columns):
    [(path, split, pair)] = found(tmp_path, {name: content, "_about.txt": "about"}, columns=columns)
    assert path.startswith(f"{name}#")
    assert (split, pair) == (None, ("Go.", "Va !"))


def test_a_bad_row_of_a_table_is_named(tmp_path):
    items = found(tmp_path, {"train.tsv": "source\ttarget\na\tb\tc\na\tb\n"})
    assert items == [
        ("train.tsv#2", "train", "line 2: 3 fields where the header has 2"),
        ("train.tsv#3", "train", ("a", "b")),
    ]


EN_DE = {"train.en": "one\ntwo\n", "train.de": "eins\nzwei\n"}


@pytest.mark.parametrize(
    ("files", "columns", "error", "message"),
    [
        (
            EN_DE | {"train.de": "eins\n"},
            NAMES,
            InputRefusedError,
            "train.en has 2 lines, .*train.de 1: they do not belong",
        ),
        (
            EN_DE | {"val.de": "x\n"},
            NAMES,
            InputRefusedError,
            "val.de has no partner: val exists in one language only",
        ),
        (EN_DE, {}, ConfigurationError, r"columns: \{source: en, target: de\}. Endings found: de, en"),
        (EN_DE, {"source": "en"}, ConfigurationError, "Endings found: de, en"),
        (
            EN_DE,
            {"source": "en", "target": "fr"},
            InputRefusedError,
            r"no file that ends with .fr \(target\). Endings found: de",
        ),
        (EN_DE, NAMES | {"label": "x"}, ConfigurationError, "Endings found: de, en"),
        ({}, NAMES, InputRefusedError, "Endings found: none"),
        (
            {"train.csv": "en,de\na,b\n"},
            {},
            InputRefusedError,
            "has no column for the source: none is called source, src",
        ),
        (EN_DE | {"train.de": gzip.compress(b"x")}, NAMES, InputRefusedError, "train.de is not UTF-8"),
        ({"train.en.gz": b"x", "train.de.gz": b"y"}, NAMES, InputRefusedError, "train.en.gz is damaged or cut off"),
    ],
)
def test_what_cannot_be_found_is_reported(tmp_path, files, columns, error, message):
    with pytest.raises(error, match=message):
        found(tmp_path, files, columns=columns)


def test_both_sides_are_the_content_of_a_pair():
    example = translation.decode(("  A cafe\u0301. ", "Ein Caf\u00e9 ."), encoding=None)
    assert example.arrays == {"source": "A caf\u00e9.", "target": "Ein Caf\u00e9 ."}
    assert example.content == hashlib.sha256("A caf\u00e9.\0Ein Caf\u00e9 .".encode()).digest()
    assert example.facts == {
        "source_characters": 7, "source_words": 2, "source_script": "LATIN",
        "target_characters": 10, "target_words": 3, "target_script": "LATIN",
    }  # fmt: skip
    assert example.fingerprint.shape == (512,)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("", "x"), "the source: it is empty"),
        (("x", " "), "the target: it is empty"),
        (("a\0", "x"), "the source: .*NUL"),
    ],
)
def test_a_pair_with_an_empty_side_is_refused(pair, message):
    with pytest.raises(InputRefusedError, match=message):
        translation.decode(pair)


def test_multi30k_has_29000_and_1014_and_1000_pairs(datasets):
    items = found(datasets / "multi30k-en-de", columns=NAMES)
    assert Counter(split for _, split, _ in items) == {"train": 29_000, "val": 1_014, "test": 1_000}
    assert {path: pair for path, _, pair in items}["train.en.gz#1"] == (
        "Two young, White males are outside near many bushes.",
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    )
