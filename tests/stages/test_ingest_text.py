import gzip
import hashlib
import tarfile
import unicodedata
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import text
from stages.ingest.finders import text as finder
from stages.ingest.formats.archives import prepared
from stages.ingest.records import Source


def found(folder, raw=None, **options):
    """Returns [(path, label, split, text or files or problem)] of the examples in these files."""
    for name, content in (raw or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [
        (i.path, i.label, i.split, i.problem or i.payload or i.files) for i in finder.find(Source(folder, **options))
    ]


def test_a_table_gives_text_class_and_split(tmp_path):
    files = {
        "data.csv": "text,label,split\ngood film,pos,train\nbad film, neg ,validation\nso,,test\nso,a,b,c\n",
        "README.md": "text",
    }
    assert found(tmp_path, files) == [
        ("data.csv#2", "pos", "train", "good film"),
        ("data.csv#3", "neg", "val", "bad film"),
        ("data.csv#4", None, "test", "the name of its class has 0 characters; allowed are 1 to 200"),
        ("data.csv#5", None, None, "line 5: 4 fields where the header has 3"),
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.csv", "test.csv"),
        ("data/train-00000-of-00001.csv", "data/test-00000-of-00001.csv"),
        ("Training_Set.csv", "testing.csv"),
        ("train/part.csv", "test/part.csv"),
    ],
)
def test_names_of_files_and_folders_tell_the_split(tmp_path, train, test):
    files = dict.fromkeys((train, test, "trainers.csv"), "text,label\na,b\n")
    splits = {path: split for path, _, split, _ in found(tmp_path, files)}
    assert splits == {f"{train}#2": "train", f"{test}#2": "test", "trainers.csv#2": None}


def test_files_of_params_are_the_only_ones_that_are_read(tmp_path):
    files = {name: f"text,label\n{name},b\n" for name in ("train.csv", "extra.csv", "test.csv")}
    items = found(tmp_path, files, files={"train": "extra.csv", "test": "te*.csv"})
    assert [(path, split) for path, _, split, _ in items] == [("extra.csv#2", "train"), ("test.csv#2", "test")]
    with pytest.raises(ConfigurationError, match="files.val = 'dev.*' matches no file"):
        found(tmp_path, files={"val": "dev.*"})


def test_agnews_without_a_header_is_read_by_numbers(tmp_path):
    files = {"train.csv": '"3","Title","Some text"\n', "classes.txt": "World\n", "readme.txt": "AG"}
    assert found(tmp_path, files, columns={"label": 0, "text": [1, 2]}) == [
        ("train.csv#1", "3", "train", "Title Some text")
    ]


def test_a_parquet_of_hugging_face_is_read(tmp_path):
    table = pa.table({"text": ["a", "b"], "label": pa.array([1, 0])})
    names = '{"info": {"features": {"label": {"names": ["neg", "pos"]}}}}'
    (tmp_path / "data").mkdir()
    pq.write_table(table.replace_schema_metadata({"huggingface": names}), tmp_path / "data/test-00000-of-00001.parquet")
    assert found(tmp_path) == [
        ("data/test-00000-of-00001.parquet#1", "pos", "test", "a"),
        ("data/test-00000-of-00001.parquet#2", "neg", "test", "b"),
    ]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("neg.txt", "pos.txt"), ["neg", "pos"]),
        (("rt-polarity.neg", "rt-polarity.pos"), ["neg", "pos"]),
        (("car.txt", "train.txt"), ["car", "train"]),  # a train is a vehicle, as nothing is for the test
        (("neg", "pos.txt"), ["neg", "pos"]),
    ],
)
def test_a_file_per_class_has_a_text_per_line(tmp_path, names, labels):
    files = dict(zip(names, ("bad\n\nvery bad \n", "good"), strict=True)) | {"rt.README.1.0.txt": "x", "LICENSE": "x"}
    assert found(tmp_path, files) == [
        (f"{names[0]}#1", labels[0], None, "bad"),
        (f"{names[0]}#3", labels[0], None, "very bad "),
        (f"{names[1]}#1", labels[1], None, "good"),
    ]


@pytest.mark.parametrize(
    "form", ["{split}/{label}.txt", "{split}.{label}", "{split}_{label}.txt", "{split}-{label}.txt.gz"]
)
def test_files_per_class_and_split_are_told_apart(tmp_path, form):
    names = {
        form.format(split=split, label=label): (split, label) for split in ("test", "train") for label in ("a", "b")
    }
    items = found(tmp_path, {name: gzip.compress(b"x") if name.endswith("gz") else b"x" for name in names})
    assert {path: (split, label) for path, label, split, _ in items} == {f"{name}#1": names[name] for name in names}


def test_folders_of_texts_are_classes_and_unsup_is_left_out(tmp_path):
    files = {
        f"{split}/{label}/{n}_7.txt": f"{label} {n}"
        for split in ("train", "test")
        for label in ("pos", "neg")
        for n in (0, 1)
    }
    litter = {"train/unsup/0_0.txt": "?", "train/urls_pos.txt": "x", "imdb.vocab": "x", "train/labeledBow.feat": "1:2"}
    source = Source(tmp_path)
    for name, content in (files | litter).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    items = list(finder.find(source))
    assert {item.path: (item.split, item.label, item.files) for item in items} == {
        name: (*name.split("/")[:2], (name,)) for name in files
    }
    assert source.notes["layout"] == "class folders"
    assert source.notes["left_out"].startswith(
        "4 files: imdb.vocab, train/labeledBow.feat, train/unsup/0_0.txt, train/urls"
    )
    [example] = [text.decode([(tmp_path / items[0].path).read_bytes()], encoding=None)]
    assert example.arrays == {"text": "neg 0"}


def test_folders_of_other_names_are_splits_where_params_say_so(tmp_path):
    files = {
        f"20news-bydate-{split}/{label}/49960": "x"
        for split in ("train", "test")
        for label in ("alt.atheism", "sci.med")
    }
    globs = {split: f"20news-bydate-{split}/*/*" for split in ("train", "test")}
    items = found(tmp_path, files, files=globs)
    assert [(split, label) for _, label, split, _ in items] == [
        (split, label) for split in ("test", "train") for label in ("alt.atheism", "sci.med")
    ]


TREC = "DESC:manner How did serfdom develop ?\nLOC:city What is ...\nnothing\n"


def test_lines_that_begin_with_their_class_are_read(tmp_path):
    problem = "line 3: does not begin like the first line, or has nothing after its class"
    assert found(tmp_path, {"train_5500.label": TREC}) == [
        ("train_5500.label#1", "DESC", "train", "How did serfdom develop ?"),
        ("train_5500.label#2", "LOC", "train", "What is ..."),
        ("train_5500.label#3", None, "train", problem),
    ]
    items = found(tmp_path, files={"test": "*.label"}, columns={"label": "fine"})
    assert [(label, split) for _, label, split, _ in items][:2] == [("DESC:manner", "test"), ("LOC:city", "test")]
    with pytest.raises(ConfigurationError, match="is for tables; .* has none. Allowed here: label: coarse or fine"):
        found(tmp_path, columns={"text": "question"})


def test_such_lines_are_known_without_the_ending_too(tmp_path):
    files = {
        "train.txt": "LOC:city What is ...\n",
        "test.ft.txt": "__label__spam Win now\n__label__ham\u00a0  See you\n",
    }
    assert found(tmp_path, files) == [
        ("test.ft.txt#1", "spam", "test", "Win now"),
        ("test.ft.txt#2", "ham", "test", "See you"),
        ("train.txt#1", "LOC", "train", "What is ..."),
    ]
    (tmp_path / "one").mkdir()
    assert found(tmp_path / "one", {"x.label": "spam Win now\nham See: you\n"})[1] == (
        "x.label#2",
        "ham",
        None,
        "See: you",
    )


@pytest.mark.parametrize(
    ("files", "options", "error", "message"),
    [
        ({}, {}, InputRefusedError, "has no texts. Allowed: tables .*Found at its top: "),
        ({"README": "x"}, {}, InputRefusedError, "has no texts"),
        (
            {"spam": "ham\tGo\n"},
            {},
            InputRefusedError,
            r"spam alone would be one class.*columns: \{label: 0, text: 1\}",
        ),
        (
            {"train.txt": "x\n", "test.txt": "x\n"},
            {},
            InputRefusedError,
            "test.txt: its name says no class, e.g. pos.txt",
        ),
        (
            {f"{n}.txt": "x" for n in range(201)},
            {},
            InputRefusedError,
            "201 files and no class folders.*up to 200 files",
        ),
        (
            {"pos/1.txt": "x", "neg/1.jpg": "x"},
            {},
            InputRefusedError,
            "neg is an empty class folder. Put texts into it",
        ),
        ({"pos.txt": "x", "neg.txt": "x"}, {"columns": {"label": "x"}}, ConfigurationError, "Allowed here: none"),
        ({"a/1.txt": "x", "b/1.txt": "x"}, {"columns": {"label": "x"}}, ConfigurationError, "Allowed here: none"),
        ({"a/1.txt": "x", "b/1.txt": "x"}, {"encoding": "utf-9"}, ConfigurationError, "encoding: 'utf-9' is unknown"),
        ({"train.csv": "text\nx\n"}, {}, InputRefusedError, "train.csv has no column for the label"),
        ({"pos.txt": b"\xff\xfeabc", "neg.txt": "x"}, {}, InputRefusedError, "pos.txt begins with the byte order mark"),
    ],
)
def test_what_cannot_be_found_is_reported(tmp_path, files, options, error, message):
    with pytest.raises(error, match=message):
        found(tmp_path, files, **options)


# decode ---------------------------------------------------------------------------------------------------------------


def test_a_text_is_normalised_and_its_content_is_that(tmp_path):
    example = text.decode("  A\u00a0cafe\u0301 \x07\x85in\t\r\nParis\ufeff ")
    assert example.arrays == {"text": "A caf\u00e9 in Paris\ufeff"}
    assert example.content == hashlib.sha256("A caf\u00e9 in Paris\ufeff".encode()).digest()
    assert example.content == text.decode("A caf\u00e9 in Paris\ufeff").content
    assert unicodedata.is_normalized("NFC", example.arrays["text"])
    assert example.fingerprint.shape == (512,)


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ("A film, good.", (13, 3, "LATIN")),
        ("Фильм good очень", (16, 3, "CYRILLIC")),
        ("这部电影非常好看", (8, 1, "CJK")),
        ("영화는 정말", (6, 2, "HANGUL")),
        ("12 :-)", (6, 2, "none")),
    ],
)
def test_facts_are_characters_words_and_script(data, facts):
    assert tuple(text.decode(data).facts.values()) == facts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "it is empty"),
        (" \x85\t\x07 ", "it is empty"),
        ([b""], "it is empty"),
        ("a\0b", "has a NUL"),
        (["a\u0101".encode("utf-16-le")], "has a NUL"),
        ("a " * 500_001, "1,000,001 characters; allowed are 1,000,000"),
        ([b"\x89PNG\r\n\x1a\n\0\0"], "NUL|not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(data, message):
    with pytest.raises(InputRefusedError, match=message):
        text.decode(data)


def test_a_file_that_is_one_text_is_read_in_its_encoding():
    assert text.decode(["Müller".encode("cp1252")]).arrays["text"] == "Müller"
    assert text.decode(["Müller".encode("utf-16")]).arrays["text"] == "Müller"
    assert text.decode(["Мир".encode("koi8_r")], encoding="koi8_r").arrays["text"] == "Мир"
    with pytest.raises(InputRefusedError, match=r"the text is not utf-8: byte 1 \(line 1\) is 0xfc"):
        text.decode(["Müller".encode("cp1252")], encoding="utf-8")


# real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rt_polarity_has_5331_sentences_of_each_class(datasets):
    items = found(datasets / "rt-polarity")
    assert Counter(label for _, label, _, _ in items) == {"pos": 5331, "neg": 5331}
    assert len({text.decode(sentence).content for *_, sentence in items}) == 10_662
    assert all("\ufffd" not in sentence and "\x85" not in sentence for *_, sentence in items)


def test_trec_has_5452_and_500_questions_in_6_classes(datasets):
    files = {"train": "train_5500.label", "test": "TREC_10.label"}
    items = found(datasets / "trec", files=files)
    assert Counter(label for _, label, split, _ in items if split == "train") == {
        "DESC": 1162, "ENTY": 1250, "ABBR": 86, "HUM": 1223, "NUM": 896, "LOC": 835
    }  # fmt: skip
    assert Counter(split for _, _, split, _ in items) == {"train": 5452, "test": 500}
    assert len({label for _, label, _, _ in found(datasets / "trec", files=files, columns={"label": "fine"})}) == 50


def test_an_archive_of_a_real_data_set_gives_the_same(datasets, tmp_path):
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw/rt-polaritydata.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(datasets / "rt-polarity", "rt-polaritydata")
    assert found(prepared(tmp_path / "raw", tmp_path / "scratch")) == found(datasets / "rt-polarity")
