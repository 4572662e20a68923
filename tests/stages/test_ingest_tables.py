import codecs
import csv
import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import encodings
from stages.ingest.formats import columns, delimited, tables, text_files
from stages.ingest.records import Source


def read(folder, name, content, *, roles=("text", "label"), optional=("split",), **options):
    """Returns [(number, values or problem)] of a table with this content."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    source = Source(folder, **options)
    return [(row.number, row.problem or row.values) for row in tables.rows(source, name, roles, optional)]


def parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


VALUES = ["NA", "001", "1.0", "1e5", "true", "null", "nan", "None", "", " x ", "-", "2001-09-09", '"', "a,b", "a\nb"]


def test_fault_33_a_csv_gives_every_value_as_it_stands(tmp_path):
    with (tmp_path / "made.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([value, value] for value in VALUES)])
    rows = read(tmp_path, "x.csv", (tmp_path / "made.csv").read_bytes())
    assert [values["text"] for _, values in rows] == [values["label"] for _, values in rows] == VALUES
    assert [number for number, _ in rows] == [*range(2, 17)]  # the line on which each begins


def test_a_jsonl_gives_numbers_as_they_are_written(tmp_path):
    lines = '{"text": 1, "label": "001"}\n{"text": 1.0, "label": true}\n\n{"text": 1e5, "label": false}\r\n'
    assert read(tmp_path, "x.jsonl", lines) == [
        (1, {"text": "1", "label": "001"}),
        (2, {"text": "1.0", "label": "true"}),
        (4, {"text": "1e5", "label": "false"}),
    ]


def test_a_parquet_gives_numbers_as_their_shortest_text(tmp_path):
    data = parquet(
        tmp_path, text=["001", "NA", "nan"], label=pa.array([1.0, 2.5, 3.0]), split=["train", "Dev", "TESTING"]
    )
    assert read(tmp_path, "x.parquet", data) == [
        (1, {"text": "001", "label": "1", "split": "train"}),
        (2, {"text": "NA", "label": "2.5", "split": "val"}),
        (3, {"text": "nan", "label": "3", "split": "test"}),
    ]
    data = parquet(tmp_path, text=["a", "b"], label=pd.Categorical(["x", "y"]), split=["train"] * 2)
    assert [values["label"] for _, values in read(tmp_path, "x.parquet", data)] == ["x", "y"]
    data = parquet(tmp_path, text=["a", "b"], label=[True, False])
    assert [values["label"] for _, values in read(tmp_path, "x.parquet", data)] == ["true", "false"]


PROBLEMS = [
    ("x.csv", "text,label\na,b,c\nd,e\n", "line 2: 3 fields where the header has 2"),
    ("x.csv", "text,label\na\nd,e\n", "line 2: 1 field where the header has 2"),
    ("x.csv", "text,label\nx\0y,b\nd,e\n", "line 2: a NUL in the column text"),
    ("x.csv", 'text,label\n"a" b,c\nd,e\n', "line 2: no valid row: ',' expected after '\"'"),
    ("x.csv", "text,label\na\rb,c\nd,e\n", "line 2: no valid row: new-line character"),
    ("x.csv", "text,label,split\na,b,somewhere\nd,e,train\n", "line 2: the split 'somewhere' is none of train"),
    ("x.tsv", "text\tlabel\na\tb\tc\nd\te\n", "line 2: 3 fields where the header has 2"),
    ("x.jsonl", '{"text": "d"}\n{"text": "d", "label": "e"}\n', "line 1: no value in the column label"),
    ("x.jsonl", '{"text": "d", "label": null}\n{"text": "d", "label": "e"}\n', "line 1: no value in the column label"),
    ("x.jsonl", '{"text": "d", "label": ["e"]}\n{"text": "d", "label": "e"}\n', "line 1: a list in the column label"),
    (
        "x.jsonl",
        '{"text": {"a": 1}, "label": "a"}\n{"text": "d", "label": "e"}\n',
        "line 1: an object in the column text",
    ),
    ("x.jsonl", '{"text": "d", "label": NaN}\n{"text": "d", "label": "e"}\n', "line 1: no valid JSON: NaN is no JSON"),
    ("x.jsonl", '{"text": "d", "label": -Infinity}\n{"text": "d", "label": "e"}\n', "line 1: no valid JSON: -Infinity"),
    ("x.jsonl", '{"text": "d", "text": "x", "label": "e"}\n{"text": "d", "label": "e"}\n', "a key twice"),
    ("x.jsonl", '{"text": "d", "label": "e"\n{"text": "d", "label": "e"}\n', "line 1: no valid JSON: "),
    ("x.jsonl", '["d", "e"]\n{"text": "d", "label": "e"}\n', "line 1: a JSON list where an object is needed"),
    ("x.jsonl", f'{"[" * 100_000}\n{{"text": "d", "label": "e"}}\n', "line 1: JSON nested too deeply"),
    ("x.jsonl", '{"text": "\\ud83d", "label": "e"}\n{"text": "d", "label": "e"}\n', "line 1: half a surrogate pair"),
    (
        "x.jsonl",
        '{"text": "a\\u0000", "label": "e"}\n{"text": "d", "label": "e"}\n',
        "line 1: a NUL in the column text",
    ),
    ("x.jsonl", f'{{"text": {"9" * 5000}x}}\n{{"text": "d", "label": "e"}}\n', "line 1: no valid JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), PROBLEMS)
def test_fault_33_a_bad_row_is_named_and_the_others_are_read(tmp_path, name, content, message):
    [(_, problem), (_, good)] = read(tmp_path, name, content)
    assert message in problem
    assert (good["text"], good["label"]) == ("d", "e")


def test_fault_33_a_quote_left_open_takes_no_row_unseen(tmp_path):
    rows = read(tmp_path, "x.csv", 'text,label\n"a,b\nc,d\n"e",f\ng,h\n"i,j\nk,l\n')
    problems = {number: problem for number, problem in rows if isinstance(problem, str)}
    assert [*problems] == [2, 3, 4, 6, 7]
    assert problems[3] == "line 3: taken by a quote that is opened on line 2 and not closed as it should be"
    assert "unexpected end of data" in problems[6]
    assert [values for _, values in rows if isinstance(values, dict)] == [{"text": "g", "label": "h"}]


def test_a_row_or_line_that_would_fill_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "ROW_CHARACTERS", 1000)
    with pytest.raises(InputRefusedError, match="x.csv, line 3: a row of more than 1,000 .* quote left open there?"):
        read(tmp_path, "x.csv", 'text,label\na,b\n"c,d\n' + "e,f\n" * 1000)
    assert read(tmp_path, "y.csv", "text,label\n" + "e,f\n" * 1000)[-1] == (1001, {"text": "e", "label": "f"})
    monkeypatch.setattr(columns, "VALUE_CHARACTERS", 10)
    assert read(tmp_path, "x.jsonl", '{"text": "12345678901", "label": 2}\n') == [
        (1, "line 1: 11 characters in the column text; allowed are 10")
    ]
    monkeypatch.setattr(text_files, "LINE_CHARACTERS", 1000)
    with pytest.raises(InputRefusedError, match="x.jsonl, line 2 has 1,000 characters or more"):
        read(tmp_path, "x.jsonl", '{"text": 1, "label": 2}\n' + " " * 2000)


REFUSED = [
    ("x.csv", "text,label,text\na,b,c\n", {}, "has two columns 'text'. Rename one"),
    ("x.csv", "a,b\nc,d\n", {}, "has no column for the text: none is called text, sentence.* It has: a, b. .*numbers"),
    (
        "x.csv",
        "text,label\na,b\n",
        {"columns": {"label": "topic"}},
        "has no column 'topic' .*label.* It has: text, label",
    ),
    ("x.csv", "a,b\nc,d\n", {"columns": {"text": 0, "label": 2}}, "has no column 2 .*label.* It has: 0, 1"),
    ("x.csv", "", {}, "is empty"),
    ("x.csv", "\n\n", {}, "is empty"),
    ("x.csv", 'text,"label\na,b\n', {}, "line 1: no valid row: unexpected end of data"),
    ("x.csv", b"text,label\na,\xff\n", {"encoding": "utf-8"}, r"is not utf-8: byte 13 \(line 2\) is 0xff"),
    ("x.csv", codecs.BOM_UTF8 + b"text,label\n\xff,a\n", {}, "begins with the byte order mark of utf-8, but is not"),
    ("x.jsonl", "", {}, "is empty"),
    ("x.jsonl", "[\n1,\n2\n]\n", {}, "has no JSON object in its first 4 lines; line 1: no valid JSON"),
    ("x.parquet", b"PAR1 no PAR1", {}, "is no Parquet file, is damaged or is cut off"),
    ("x.parquet", b"", {}, "is no Parquet file, is damaged or is cut off"),
    ("x.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-3], {}, "x.csv.gz is damaged or cut off"),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), REFUSED)
def test_fault_of_a_whole_file_is_reported(tmp_path, name, content, options, message):
    with pytest.raises(InputRefusedError, match=message) as caught:
        read(tmp_path, name, content, **options)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lable": "x"}, "lable is no role here. Allowed: text, label, split"),
        ({"text": 0, "label": "label"}, "mixes names, which a header has, with numbers"),
    ],
)
def test_columns_that_make_no_sense_are_a_wrong_configuration(tmp_path, columns, message):
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, "x.csv", "text,label\na,b\n", columns=columns)
    with pytest.raises(ConfigurationError, match="give names and not numbers"):
        read(tmp_path, "x.jsonl", '{"text": 1, "label": 2}\n', columns={"text": 0, "label": 1})
    with pytest.raises(ConfigurationError, match="encoding: 'latin-99' is unknown"):
        read(tmp_path, "x.csv", "text,label\na,b\n", encoding="latin-99")
    with pytest.raises(ConfigurationError, match="encoding: 'zlib' is unknown"):
        read(tmp_path, "x.csv", "text,label\na,b\n", encoding="zlib")


def test_columns_are_found_by_their_usual_names_or_as_params_say(tmp_path):
    content = "id,Sentence,category, Sentiment ,title\n7,good film,drama,pos,The Film\n"
    assert read(tmp_path, "x.csv", content) == [(2, {"text": "good film", "label": "drama"})]
    source = Source(tmp_path, {"text": ["title", "Sentence"], "label": "Sentiment"})
    [row] = tables.rows(source, "x.csv", ("text", "label"))
    assert row.values == {"text": "The Film good film", "label": "pos"}
    assert source.notes["columns"] == {"x.csv": {"text": ["title", "Sentence"], "label": "Sentiment"}}
    assert source.notes["encodings"] == {"x.csv": "utf-8"}


def test_a_table_without_header_has_columns_by_number(tmp_path):
    content = '"3","Wall St. ""Bears""","Reuters - Short-sellers"\n"4","one","two","three"\n'
    assert read(tmp_path, "x.csv", content, columns={"label": 0, "text": [1, 2]}) == [
        (1, {"label": "3", "text": 'Wall St. "Bears" Reuters - Short-sellers'}),
        (2, "line 2: 4 fields where the first row has 3"),
    ]
    source = Source(tmp_path, {"label": 0, "text": 1})
    assert tables.table_files(source, ["SMSSpamCollection", "fra.txt", "a.png"]) == ["SMSSpamCollection", "fra.txt"]
    assert tables.table_files(source, ["classes.txt", "train.CSV.gz"]) == ["train.CSV.gz"]
    assert tables.table_files(Source(tmp_path), ["pos.txt", "neg.txt"]) == []


def test_names_that_are_missing_may_be_repeated(tmp_path):
    content = "v1,v2,,,\nham,Go until,,,\n"  # the SMS spam collection as Kaggle has it
    assert read(tmp_path, "x.csv", content, columns={"label": "v1", "text": "v2"}) == [
        (2, {"text": "Go until", "label": "ham"})
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "text;label\n1,5;b\n"),
        ("x.csv", '"text, all of it";label;text\na;b;"1,5"\n'),
        ("x.csv", "text\tlabel\n1,5\tb\n"),
        ("x.csv", 'text,label\r\n"1,5",b\r\n'),
        ("x.tsv", "text\tlabel\n1,5\tb\n"),
        ("x.tab", '"text"\t"label"\n"1,5"\t"b"\n'),
        ("x.csv", codecs.BOM_UTF8 + b'text,label\n"1,5",b\n'),
        ("x.csv", '"text",label\n"1,5",b\n'.encode("utf-16")),
        ("x.csv", '"text",label\n"1,5",b\n'.encode("utf-32")),
        ("x.csv.gz", gzip.compress(b'text,label\n"1,5",b\n', mtime=0)),
        ("x.ndjson", '\ufeff{"text": "1,5", "label": "b"}'),
    ],
)
def test_dialects_and_byte_order_marks_are_understood(tmp_path, name, content):
    [(_, values)] = read(tmp_path, name, content)
    assert (values["text"], values["label"]) == ("1,5", "b")


def test_a_quotation_mark_in_a_tsv_is_text(tmp_path):
    rows = read(tmp_path, "x.tsv", 'text\tlabel\n"Go!" he said\ta\n"open\tb\n5" disk\tc\n')
    assert [values["text"] for _, values in rows] == ['"Go!" he said', '"open', '5" disk']


def test_names_of_classes_and_nested_fields_of_hugging_face_are_used(tmp_path):
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table(
        {"text": ["a", "b", "c"], "label": pa.array([1, 0, -1]), "image": [{"bytes": b"\x89PNG", "path": "1"}] * 3}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "made.parquet")
    rows = read(tmp_path, "x.parquet", (tmp_path / "made.parquet").read_bytes(), optional=("image",))
    assert rows[0] == (1, {"text": "a", "label": "pos", "image": {"bytes": b"\x89PNG", "path": "1"}})
    assert rows[1][1]["label"] == "neg"
    assert rows[2] == (3, "row 3: -1 in the column label is none of its 2 classes")

    pair = [{"en": "yes", "de": "ja"}]
    names = {"source": "translation.en", "target": "translation.de"}
    options = {"roles": ("source", "target"), "columns": names}
    expected = {"source": "yes", "target": "ja"}
    assert read(tmp_path, "y.parquet", parquet(tmp_path, translation=pair), **options) == [(1, expected)]
    assert read(tmp_path, "y.jsonl", json.dumps({"translation": pair[0]}), **options) == [(1, expected)]


def test_null_nan_bytes_and_invalid_utf8_in_parquet_are_problems_of_their_rows(tmp_path):
    data = parquet(tmp_path, text=["a", None, "c"], label=pa.array([1.0, 2.0, float("nan")]))
    assert [problem for _, problem in read(tmp_path, "x.parquet", data)][1:] == [
        "row 2: no value in the column text",
        "row 3: no value in the column label",
    ]
    data = parquet(tmp_path, text=[b"a"], label=["b"])
    assert read(tmp_path, "x.parquet", data) == [(1, "row 1: bytes in the column text, where a text is needed")]
    data = parquet(tmp_path, text=["caf\u00e9", "d"], label=["b", "e"])
    rows = read(tmp_path, "x.parquet", data.replace("caf\u00e9".encode(), b"caf\xff\xff"))
    assert [number for number, values in rows if isinstance(values, str)] in ([], [1])


@pytest.mark.parametrize("form", ["snappy", "none"])
def test_fault_34_no_flipped_byte_of_a_parquet_leaves_a_traceback(tmp_path, form):
    table = pa.table({"text": [f"sentence {n} \u00e9" for n in range(40)], "label": [n % 2 for n in range(40)]})
    pq.write_table(table, tmp_path / "made.parquet", compression=form)
    flips(tmp_path, "x.parquet", (tmp_path / "made.parquet").read_bytes())


def test_fault_34_no_flipped_byte_of_a_jsonl_or_csv_leaves_a_traceback(tmp_path):
    lines = [{"text": f"sentence {n} \u00e9", "label": n % 2, "more": [1.5, {"x": None}]} for n in range(6)]
    flips(tmp_path, "x.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    flips(
        tmp_path,
        "x.csv",
        b"text,label\n" + b"".join(b'"some ""words"", \xc3\xa9 %d",a\n' % n for n in range(6)),
    )
    flips(tmp_path, "x.csv.gz", gzip.compress(b"text,label\nsome words,a\n", mtime=0))


def flips(folder, name, data):
    """Reads the file with each third byte changed, and cut off there: it is read or refused, and nothing else."""
    for place in range(0, len(data), 3):
        for damaged in (data[:place] + bytes([data[place] ^ 0x91]) + data[place + 1 :], data[:place]):
            try:
                read(folder, name, damaged, columns={"text": "text", "label": "label"})
            except InputRefusedError as refusal:
                assert str(folder / name) in str(refusal)


# encodings ------------------------------------------------------------------------------------------------------------

LANGUAGES = [  # a reading that is clearly better than the others is chosen
    ("cp1252", "Le film était très réussi, l’acteur formidable; à voir où l’on découvre une œuvre à la française."),
    ("latin-1", "Der Film war wunderschön über große Gefühle, aber das Ende enttäuschte mich völlig."),
    ("cp1252", "a café\n" + "all the rest is English\n" * 1000),
    ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Tento film byl výborný, herci skvělí a příběh dojemný."),
    ("cp1251", "Фильм очень понравился, актёры играют отлично, но сюжет немного затянут. Рекомендую всем."),
    ("koi8_r", "Фильм очень понравился, актеры играют отлично, но сюжет немного затянут. Рекомендую всем."),
    ("cp1253", "Η ταινία ήταν πολύ καλή, οι ηθοποιοί έπαιξαν υπέροχα αλλά το τέλος με απογοήτευσε."),
    ("cp1255", "הסרט היה טוב מאוד והשחקנים היו נהדרים אבל הסוף אכזב אותי"),
    ("gb18030", "这部电影非常好看，演员演技很棒，但是结尾让人失望。推荐大家去看。"),
    ("big5", "這部電影非常好看，演員演技很棒，但是結尾讓人失望。推薦大家去看。"),
    ("cp949", "이 영화는 정말 재미있었습니다. 배우들의 연기도 훌륭했지만 결말은 아쉬웠습니다."),
]


@pytest.mark.parametrize(("encoding", "text"), LANGUAGES)
def test_an_encoding_is_found_out_where_one_reading_is_clearly_best(tmp_path, encoding, text):
    assert encodings.decode(text.encode(encoding), None) == text
    (tmp_path / "x.txt").write_bytes(text.encode(encoding))
    source = Source(tmp_path)
    found = text_files.encoding_of(source, "x.txt")
    assert source.notes["encodings"] == {"x.txt": found}
    assert [line for _, line in text_files.lines(tmp_path / "x.txt", found)] == text.removesuffix("\n").split("\n")


def test_an_encoding_that_could_be_several_has_to_be_given(tmp_path):
    data = "この映画はとても面白かったです。俳優の演技も素晴らしいですが、結末は残念でした。".encode("cp932")
    with pytest.raises(InputRefusedError, match=r"byte 0 \(line 1\) is 0x82.*may be .*cp932.*e.g. encoding: cp1252"):
        encodings.decode(data, None)
    assert encodings.decode(data, "cp932") == data.decode("cp932")
    with pytest.raises(InputRefusedError, match="is not UTF-8"):
        encodings.decode(bytes(np.random.default_rng(0).integers(128, 256, 3000, np.uint8)), None)


def test_one_damaged_byte_does_not_make_another_encoding_of_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes("Le film était très réussi.\n".encode() * 9 + b"l'\xe9t\xe9\n")
    with pytest.raises(InputRefusedError, match=r"x.txt is UTF-8 but for byte 272 \(line 10\) is 0xe9"):
        text_files.encoding_of(Source(tmp_path), "x.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "big5", "euc_jp"])
def test_the_place_of_a_byte_that_does_not_fit_is_right_in_large_files(tmp_path, encoding):
    good = ("語" * 1000 + "\n").encode(encoding) * 60  # several blocks of reading, which cut characters
    (tmp_path / "x.txt").write_bytes(good + b"abc\xff\n" + good)
    with pytest.raises(InputRefusedError, match=rf"byte {len(good) + 3} \(line 61\) is 0xff"):
        text_files.encoding_of(Source(tmp_path, encoding=encoding), "x.txt")


def test_only_line_feeds_end_lines(tmp_path):
    (tmp_path / "x.txt").write_bytes("\ufeffa\x85b\u2028c\x0cd\re\r\n\n\nf".encode())
    lines = [*text_files.lines(tmp_path / "x.txt", "utf-8")]
    assert lines == [(1, "a\x85b\u2028c\x0cd\re"), (2, ""), (3, ""), (4, "f")]


def test_real_data_has_the_encodings_and_lines_that_are_known_of_it(datasets):
    for file in ("rt-polarity.pos", "rt-polarity.neg"):
        source = Source(datasets / "rt-polarity")
        assert text_files.encoding_of(source, file) == "cp1252"
        assert sum(1 for _ in text_files.lines(source.folder / file, "cp1252")) == 5331
    found = text_files.encoding_of(Source(datasets / "trec"), "train_5500.label")
    assert b"\xf0".decode(found) == "\u00f0"  # a Western reading of its one odd byte
    assert text_files.encoding_of(Source(datasets / "multi30k-en-de"), "train.de.gz") == "utf-8"
