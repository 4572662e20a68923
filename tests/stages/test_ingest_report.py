import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from markup import HOSTILE, Page, values

from convoy.data.shards import ShardWriter, objects
from convoy.files import write_sealed
from convoy.pages.page import share, shown
from stages.ingest.report.report import report

SPLITS = ("train", "val", "test")
KINDS = {
    "images": lambda rng: ({"image": rng.integers(0, 256, (8, 9, 1), np.uint8)}, {"height": 30, "width": 40}),
    "volumes": lambda rng: (
        {"volume": rng.integers(0, 256, (5, 6, 7, 3), np.uint8)},
        {"depth": 9, "height": int(rng.integers(5, 90)), "width": int(rng.integers(5, 9000))},
    ),
    "text": lambda rng: (
        {"text": "a b " * rng.integers(1, 50)},
        {"words": int(rng.integers(2, 99)), "script": "LATIN"},
    ),
    "translation": lambda rng: ({"source": "a", "target": "β"}, {"source_script": "LATIN", "target_words": 1}),
}


def write(folder, kind="images", examples=40, classes=("cat", "dog"), near=(), refused=(), doubles=(), **about):
    """Writes what ingest writes of ``examples`` examples, one after the other in each class and split.

    ``near`` are places of examples that are one group of near copies.
    """
    rng, classes = np.random.default_rng(0), list(classes) if kind != "translation" else []
    rows, blocks = [], {split: [] for split in SPLITS}
    for number in range(examples):
        label = number % len(classes) if classes else 0
        split = "train" if number in near else SPLITS[number // max(1, len(classes)) % 3]
        arrays, facts = KINDS[kind](rng)
        rows.append(
            {"path": f"{label}/{number}.png", "label": classes[label] if classes else None, "split": split}
            | {"sha256": f"{number:064x}", "near": f"{near[0]:064x}" if number in near else ""}
            | facts
        )
        block = {name: np.array([array, None], object)[:1] if kind in ("text", "translation") else array[None]
                 for name, array in arrays.items()}  # fmt: skip
        blocks[split].append(block | ({"label": np.array([label])} if classes else {}))
    manifest = pd.DataFrame(rows).dropna(axis=1)
    for split in SPLITS:
        with ShardWriter(folder / split) as writer:
            for block in blocks[split]:
                writer.append(block)
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    pd.DataFrame(refused, columns=["path", "reason"]).to_csv(folder / "quarantine.csv", index=False)
    names = ["path", "same_as", "how", "label", "other_label"]
    doubles = pd.DataFrame(doubles, columns=names)
    doubles.to_csv(folder / "duplicates.csv", index=False)
    size = {"images": [8, 9], "volumes": [5, 6, 7]}.get(kind)
    counts = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    for row in rows if classes else ():
        counts[row["split"]][row["label"]] += 1
    defaults = {
        "dataset": "pets",
        "kind": kind,
        "classes": classes,
        "examples": {split: len(blocks[split]) for split in SPLITS},
        "counts": counts,
        "missing": {},
        "unreadable": 0,
        "duplicates": int((doubles["how"] == "same").sum()),
        "near_duplicates": int((doubles["how"] == "near").sum()),
        "near_compared": examples,
        "duplicates_under_another_label": int((doubles["label"] != doubles["other_label"]).sum()),
        "left_out_of_train": 0,
        "reading": {"layout": "class folders"},
        "manifest_sha256": "0" * 64,
        "options": {"size": size, "mode": "grey" if size else None, "fit": "stretch", "near_duplicates": True},
    }
    write_sealed(folder / "about.json", defaults | about)
    return counts


def page_of(folder, **what):
    write(folder, **what)
    report(folder)
    return Page(folder / "report.html")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_whole_page_that_needs_nothing_else(kind, tmp_path):
    page = page_of(tmp_path, kind=kind)
    assert page.open == []  # every element is closed, in order
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", page.source)
    for value in values(page, "src", "href", "srcset", "action"):
        assert value.startswith(("data:image/webp;base64,", "#"))
    ids = values(page, "id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in values(page, "href")} <= set(ids)
    assert page.tags.count("img") == len(values(page, "alt")) == {"images": 14, "volumes": 14}.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_input_gives_equal_bytes(kind, tmp_path):
    before = page_of(tmp_path, kind=kind).source
    report(tmp_path)
    assert Page(tmp_path / "report.html").source == before


def test_counts_are_those_of_the_tables(tmp_path):
    counts = write(tmp_path, examples=3331, classes="abc", refused=[("x.png", "damaged: cut off")] * 3, unreadable=3)
    report(tmp_path)
    page = Page(tmp_path / "report.html")
    for label in "abc":
        row = " ".join(f"{counts[split][label]:,}" for split in SPLITS)
        assert f" {label} {row} " in page.text
    assert "3,331 pictures in 3 classes, stored as 8 × 9, grey." in page.text
    assert "3 of 3,334 pictures could not be read." in page.text
    assert "3 of 3,334 that were found" in page.text
    assert "damaged 3 x.png" in page.text


def test_nothing_to_report_reads_as_such(tmp_path):
    page = page_of(tmp_path, examples=300)
    assert "Warning" not in page.text
    assert "No picture is in two splits, and no two near copies are in different ones." in page.text
    assert "No two equal or nearly equal pictures have different labels." in page.text
    assert "near copies 0 pairs, each in one split" in page.text
    assert "None: every picture occurs once." in page.text
    assert "None: no two of the 300 pictures that were compared are nearly the same." in page.text
    assert "Nothing: every picture that was found is in one of the splits." in page.text
    assert "0% of what was found" in page.text


DOUBLES = [
    ("0/1b.png", "1/1.png", "same", "cat", "dog"),
    ("1/3b.png", "1/3.png", "same", "dog", "dog"),
    ("0/2.png", "0/0.png", "near", "cat", "cat"),
    ("0/9b.png", "0/0.png", "near", "cat", "cat"),  # left out: the test has it
]
REFUSED = [("0/1b.png", "same content as 1/1.png under the label 'dog'"), ("1/3b.png", "same content as 1/3.png"),
           ("0/9b.png", "nearly the same as 0/0.png, which the data set gives for test")]  # fmt: skip


def test_copies_and_two_labels_are_shown(tmp_path):
    page = page_of(tmp_path, near=(0, 2), doubles=DOUBLES, refused=REFUSED, left_out_of_train=1)
    assert "1 pair of equal or nearly equal pictures has two labels" in page.text
    assert re.search(r"cat left out 0/1b\.png = dog \w+ 1/1\.png", page.text)
    assert "2 pictures in 1 group, and 1 more that were left out" in page.text
    assert re.search(r"cat train 0/0\.png cat train 0/2\.png not stored cat left out 0/9b\.png", page.text)
    assert "2 copies of 2 pictures left out" in page.text
    assert re.search(r"the same as another 2 .* nearly the same as another 1 0/9b\.png", page.text)
    assert (
        page.text.index("id=")
        if "id=" in page.text
        else page.source.index('id="conflicts"') < page.source.index('id="classes"')
    )


def test_a_near_copy_in_another_split_is_a_warning(tmp_path):
    write(tmp_path)
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")
    manifest.loc[manifest.index[:6], "near"] = "0" * 64  # of all three splits
    manifest.to_parquet(tmp_path / "manifest.parquet", index=False)
    report(tmp_path)
    assert (
        "Warning 1 picture or groups of near copies are in more than one split" in Page(tmp_path / "report.html").text
    )


WARNINGS = [
    ({"examples": 40}, "2 classes with fewer than 20 training pictures: cat, dog."),
    (
        {"reading": {"unread": "read as IDX files; 9 picture files beside them were not read"}},
        "Read as IDX files; 9 picture",
    ),
    ({"missing": {"val": ["dog"]}}, "The val split has no example of dog."),
    (
        {"reading": {"encodings": {"a.txt": "utf-8", "b.txt": "cp1252"}}},
        "Not in UTF-8 but read as cp1252: b.txt.",
    ),
    (
        {"counts": {"train": {"cat": 900, "dog": 300}, "val": {"cat": 9, "dog": 9}, "test": {"cat": 50, "dog": 50}}},
        "dog is 25% of train and 50% of test",
    ),
    (
        {"counts": {"train": {"cat": 310, "dog": 100}, "val": {"cat": 9, "dog": 9}, "test": {"cat": 30, "dog": 10}}},
        "310 training pictures of cat, 100 of dog, 3.1 times as many. Always answering cat scores 75% on test.",
    ),
    (
        {"options": {"size": [60, 60], "mode": "grey", "fit": "pad", "near_duplicates": True}},
        "100% of the pictures were smaller than the stored 60 x 60",
    ),
    (
        {"options": {"size": [10, 30], "mode": "grey", "fit": "crop", "near_duplicates": True}},
        "100% of the pictures are cut by more than 1.5 times",
    ),
]


@pytest.mark.parametrize(("what", "sentence"), WARNINGS)
def test_report_warns_of_what_a_person_should_know(what, sentence, tmp_path):
    text = page_of(tmp_path, **{"examples": 300, **what}).text
    assert re.search(f"Warning [^✓]*{re.escape(sentence)}", text)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("images", "no picture has enough to compare"),
        ("volumes", "of volumes only equal copies are found"),
        ("text", "no text has enough to compare"),
    ],
)
def test_near_copies_that_nobody_looked_for_are_a_note_and_a_dash(kind, why, tmp_path):
    text = page_of(tmp_path, kind=kind, examples=300, near_duplicates=None, near_compared=0).text
    noun = {"images": "picture"}.get(kind, kind.removesuffix("s"))
    assert f"Note No {noun} is in two splits. Near copies were not looked for." in text
    assert f"✓ Good No two equal {noun}s have different labels." in text
    assert "near copies – not looked for" in text
    assert f"They were not looked for: {why}." in text
    for said in ("no two near copies", "nearly equal", "nearly the same", "equal or nearly"):
        assert said not in text


def test_examples_that_cannot_be_compared_are_counted(tmp_path):
    text = page_of(tmp_path, examples=300, near_compared=296).text
    assert "no two near copies are in different ones" in text
    assert "Note 4 pictures have too little to compare: near copies of them were not looked for." in text


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        ({"left_out": "3 files: a.md, b.md, c.md"}, "Not read: 3 files: a.md, b.md, c.md."),
        ({"tables left out": ["x.csv", "y.csv"]}, "Not read: x.csv, y.csv."),
        (
            {"pictures that no row names": {"number": 7, "examples": ["a.png", "b.png"]}},
            "Not read: 7 pictures that no row names, e.g. a.png, b.png.",
        ),
    ],
)
def test_files_that_were_not_read_are_a_note_beside_those_that_were(note, sentence, tmp_path):
    assert f"Note {sentence}" in page_of(tmp_path, examples=300, reading={"layout": "tables"} | note).text


def test_sources_of_a_translation_that_stand_in_train_too_are_counted(tmp_path):
    write(tmp_path, kind="translation", examples=90)
    sources = {"train": range(30), "val": range(30, 60), "test": [*range(24, 30), *range(60, 84)]}
    for split, numbers in sources.items():
        with ShardWriter(tmp_path / split) as writer:
            texts = [f"sentence {number}" for number in numbers]
            writer.append({"source": objects(texts), "target": objects([f"{split} {text}" for text in texts])})
    report(tmp_path)
    text = Page(tmp_path / "report.html").text
    assert "Warning 20% of the sources in test stand in train too (6 of 30)" in text
    assert "✓ Good No source in val stands in train too." in text


def test_scripts_that_differ_are_named(tmp_path):
    write(tmp_path, kind="text", examples=300)
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")
    manifest.loc[:2, "script"] = "CYRILLIC"
    manifest.loc[3:4, "script"] = "none"
    manifest.to_parquet(tmp_path / "manifest.parquet", index=False)
    report(tmp_path)
    text = Page(tmp_path / "report.html").text
    assert "Mixed scripts: LATIN 295, but also CYRILLIC 3." in text
    assert "2 texts without any letter." in text


def test_a_fact_that_gives_the_class_away_is_named(tmp_path):
    write(tmp_path, examples=300)
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")
    manifest["format"] = np.where(manifest["label"] == "cat", "PNG", "JPEG")
    manifest["width"] = np.arange(300) // 2 + 50  # says nothing
    manifest.to_parquet(tmp_path / "manifest.parquet", index=False)
    report(tmp_path)
    text = Page(tmp_path / "report.html").text
    assert "The format alone says much about the class" in text
    assert "format 100% width 50%" in text


def test_hostile_names_stay_text(tmp_path):
    names = sorted(HOSTILE)
    write(
        tmp_path,
        examples=240,
        classes=names,
        dataset=HOSTILE[1],
        refused=[(name, name) for name in names if "\x00" not in name],
        doubles=[(name, "0/0.png", "same", name, names[0]) for name in names if "\x00" not in name],
        reading={name: {name: [name]} for name in names},
    )
    report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags
    assert page.open == []
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {value[:5] for value in values(page, "src")} == {"data:"}
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[4], HOSTILE[5], HOSTILE[6]):
        assert name in page.text
    assert " NA " in page.text
    assert r"a\nb\r\x00\u202egnp.exe" in page.text
    assert "\u202e" not in page.source
    assert "x" * 200 not in page.source


def test_hostile_texts_stay_text(tmp_path):
    write(tmp_path, kind="text", examples=60)
    with ShardWriter(tmp_path / "train") as writer:
        texts = (HOSTILE * 3)[:20]
        writer.append({"label": np.arange(20) % 2, "text": objects(texts)})
    report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert {"script", "img"} & set(page.tags) == set()
    assert HOSTILE[1] in page.text
    assert "x" * 300 not in page.source


def test_caps_hold(tmp_path):
    doubles = [(f"{n}/copy.png", f"{n % 500}/{n % 500}.png", "same", "a", "b") for n in range(3000)]
    refused = [(path, "same content") for path, *_ in doubles] + [(f"{n}.png", f"reason {n}: x") for n in range(300)]
    page = page_of(
        tmp_path,
        examples=1500,
        classes=[f"class {number:03d}" for number in range(500)],
        near=range(0, 90, 3),
        doubles=[*doubles, *((f"{n}/{n}.png", "0/0.png", "near", "a", "a") for n in range(3, 90, 3))],
        refused=refused,
        reading={"encodings": {f"{number}.txt": "utf-8" for number in range(9999)}},
    )
    assert len(page.source) < 500_000
    assert page.tags.count("img") < 350 + 100
    assert "450 others are not shown" in page.text
    assert "The 16 largest" not in page.text  # one group only; five of it are shown
    assert "and 25 more" in page.text
    assert "The 24 most frequent" in page.text
    assert "and 9,989 more" in page.text
    assert "other reasons 281" in page.text


def test_the_page_takes_no_pixels_but_those_it_shows(tmp_path, monkeypatch):
    write(tmp_path, examples=3000)
    rows = []
    monkeypatch.setattr("stages.ingest.report.gallery.Shards", lambda *a, **b: Counting(rows, *a, **b))
    report(tmp_path)
    assert sum(rows) < 300  # of 3000: two averages of 100, and some single ones


class Counting:
    def __init__(self, rows, *arguments, **options):
        from convoy.data.shards import Shards

        self.shards, self.rows = Shards(*arguments, **options), rows

    def take(self, name, rows):
        self.rows.append(np.size(rows))
        return self.shards.take(name, rows)

    row_bytes = property(lambda self: self.shards.row_bytes)
    names = property(lambda self: self.shards.names)


def test_the_report_starts_without_the_large_libraries():
    large = {"dvc", "keras", "matplotlib", "mlflow", "scipy", "tensorflow"}
    code = f"import sys, stages.ingest.report.report; print({large} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(("part", "said"), [(0, "0%"), (0.0004, "<0.1%"), (0.0123, "1.2%"), (0.5, "50%"), (1, "100%")])
def test_shares_are_short(part, said):
    assert share(part) == said


def test_long_names_keep_their_beginning_and_end():
    assert shown("a" * 100 + "/" + "b" * 100 + ".png", 20) == "a" * 10 + "…" + "b" * 5 + ".png"
