"""The report of a model and the comparison of all models of a data set, as files and in a real browser."""

import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from browser import browser
from markup import HOSTILE, Page, values
from PIL import Image

from convoy.data.shards import Shards, objects, write_shards
from convoy.pages.page import measured_js
from stages.evaluate.evaluators import classification
from stages.evaluate.report import pictures, report
from stages.register import comparison

KINDS = ("images", "volumes", "text", "translation")
CLASSES = ("cat", "dog", "cow")
HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "loss": [2, 1, 0.5], "accuracy": [0.3, 0.5, 0.8], "val_loss": [2, 1.5, 1],
                        "val_accuracy": [0.3, 0.4, 0.6]})  # fmt: skip
FACTS = {"model": "small", "dataset": "pets", "architecture": "plain_cnn", "record_id": "0" * 32, "parameters": 12345,
         "epochs": 3, "flops": 1_000_000, "devices": ["cpu:0"], "libraries": {"keras": "3.15.0"}}  # fmt: skip
TOOK = {"examples_per_second": 6789, "validation_examples_per_second": 23456, "memory": 1234, "seconds": 12.3}
ACCURACY = {"metric": "accuracy", "accuracy": 0.75, "accuracy_low": 0.6, "accuracy_high": 0.86, "val_accuracy": 0.7,
            "val_loss": 1.0, "baseline": 0.35, "examples": 40, "parameters": 12345, "ece": 0.0512, "temperature": 1.5,
            "ece_scaled": 0.0213}  # fmt: skip
BLEU = {"metric": "bleu", "bleu": 34.21, "bleu_low": 30.1, "bleu_high": 38.2, "val_bleu": 33.0, "val_loss": 1.0,
        "baseline": 2.5, "examples": 40, "parameters": 12345, "bleu_signature": "nrefs:1|case:mixed"}  # fmt: skip


def write(folder, kind="images", classes=CLASSES, examples=40, texts=("a fine film", "dull")):
    """Writes what train and evaluate write of a model that takes every other example for the next class."""
    trained, target = folder / "data/train/pets/small", folder / "data/evaluate/pets/small"
    for place in (trained, target / "tables", target / "plots"):
        place.mkdir(parents=True)
    classes = list(classes) if kind != "translation" else []
    array = {"images": "image", "volumes": "volume"}.get(kind)
    (trained / "run.json").write_text(json.dumps(FACTS))
    takes = {"kind": kind, "classes": classes} | ({"array": array} if array else {})
    (trained / "input.json").write_text(json.dumps(takes))
    (trained / "model.keras").write_bytes(bytes(1_234_567))
    HISTORY.to_csv(trained / "history.csv", index=False)
    pictures.draw_curves(HISTORY, "small on pets").savefig(target / "plots/curves.png")
    (target / "metrics.json").write_text(json.dumps(BLEU if kind == "translation" else ACCURACY))
    numbers = np.arange(examples)
    paths = [f"{number}.png" for number in numbers]
    lines = objects(texts[number % len(texts)] for number in numbers)
    if kind == "translation":
        block = {"source": lines, "target": lines}
        table = pd.DataFrame({"source": lines, "target": lines, "predicted": lines, "chrf": numbers, "path": paths})
        table.to_csv(target / "tables/samples.csv", index=False)
        table.assign(correct=True).to_parquet(target / "predictions.parquet")
    else:
        labels = numbers % len(classes)
        predicted = (labels + numbers % 2) % len(classes)
        probabilities = np.where(np.arange(len(classes)) == predicted[:, None], 0.9, 0.1 / (len(classes) - 1))
        names = np.array(classes, object)
        table = pd.DataFrame({"path": paths, "label": names[labels], "predicted": names[predicted]})
        table["correct"], table["probability"] = labels == predicted, 0.5 + numbers[::-1] / 2 / examples
        wrong = table[~table["correct"]].drop(columns="correct")
        rng = np.random.default_rng(0)
        block = {"images": lambda: {"image": rng.integers(0, 256, (examples, 8, 9, 1), np.uint8)},
                 "volumes": lambda: {"volume": rng.integers(0, 256, (examples, 5, 6, 7, 3), np.uint8)},
                 "text": lambda: {"text": lines}}[kind]()  # fmt: skip
        if kind == "text":
            wrong["text"] = lines[wrong.index]
        wrong.to_csv(target / "tables/errors.csv", index=False)
        table.to_parquet(target / "predictions.parquet")
        classification.per_class(labels, probabilities, classes).to_csv(target / "tables/classes.csv", index=False)
        counts = classification.confusion(labels, probabilities, classes)
        counts.to_csv(target / "tables/confusion.csv")
        if len(classes) < 5:  # names that a font cannot draw are another matter
            pictures.draw_confusion(counts, "small on pets").savefig(target / "plots/confusion.png")
    write_shards(folder / "data/ingest/pets/test", [block])
    return target, trained, Shards(folder / "data/ingest/pets/test")


def page_of(folder, **what):
    places = write(folder, **what)
    report.write(*places)
    return Page(places[0] / "report.html")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_whole_page_that_needs_nothing_else(kind, tmp_path):
    page = page_of(tmp_path, kind=kind)
    assert page.open == []  # every element is closed, in order
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", page.source)
    assert page.tags.count("script") == 2  # that of what the training took, and its own
    for value in values(page, "src", "srcset", "action"):
        assert value.startswith("data:image/") or value == "measured.js"
    ids = values(page, "id")
    own = ["samples"] if kind == "translation" else ["classes", "confusion", "errors"]
    assert ids == ["curves", *own, "numbers"]
    others = ["../../../register/pets/comparison.html", "../../../ingest/pets/report.html"]
    assert values(page, "href") == [f"#{section}" for section in ids] + others
    assert page.tags.count("img") == len(values(page, "alt")) == {"images": 22, "volumes": 22, "text": 2}.get(kind, 1)
    assert re.search(r"training – ?s 3 epochs, on cpu:0", page.text)
    assert "model 1.2 MB 12,345 parameters" in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_equal_files_give_equal_bytes(kind, tmp_path):
    places = write(tmp_path, kind=kind)
    pages = []
    for _ in range(2):
        report.write(*places)
        pages.append((places[0] / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_the_main_numbers_come_first(tmp_path):
    text = page_of(tmp_path).text
    assert "test accuracy 75.00% 60.00% to 86.00% (95 % interval), 40 examples" in text
    assert "without a model 35.00% always the most common class" in text
    assert "calibration error 0.051 0.021 at temperature 1.50" in text
    assert text.index("test accuracy 75") < text.index("Loss and score") < text.index("What metrics.json")
    assert "test bleu 34.21 30.10 to 38.20" in page_of(tmp_path / "other", kind="translation").text


def test_the_most_certain_error_comes_first_and_with_its_own_picture(tmp_path):
    target, trained, test = write(tmp_path)
    report.write(target, trained, test)
    page = Page(target / "report.html")
    assert "20 wrong answers." in page.text
    assert re.search(r"dog , taken for cow , 97\.5% certain 1\.png .* certain 3\.png", page.text)
    [first, *_] = [value for value in values(page, "src") if value.startswith("data:image/webp")]
    with Image.open(BytesIO(b64decode(first.partition(",")[2]))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("L")), test[1]["image"][..., 0])


def test_the_most_frequent_confusions_are_in_words(tmp_path):
    assert re.search(r"The most frequent cat for dog : 7 dog for cow : 7 cow for cat : 6", page_of(tmp_path).text)


def test_no_errors_are_said_to_be_none(tmp_path):
    target, trained, test = write(tmp_path)
    table = pd.read_parquet(target / "predictions.parquet").assign(correct=True)
    table.to_parquet(target / "predictions.parquet")
    table.head(0)[["path", "label", "predicted", "probability"]].to_csv(target / "tables/errors.csv", index=False)
    report.write(target, trained, test)
    assert "None: every test example got the right class." in Page(target / "report.html").text


def test_a_translation_stands_beside_its_source_and_target(tmp_path):
    target, trained, test = write(tmp_path, kind="translation")
    rows = pd.DataFrame({"source": ["one"], "target": ["un"], "predicted": ["une"], "chrf": [41.26], "path": ["1"]})
    rows.to_csv(target / "tables/samples.csv", index=False)
    report.write(target, trained, test)
    assert "source target translation chrF one un une 41.3" in Page(target / "report.html").text


def test_what_is_not_known_is_shown_at_the_end_and_long_tables_are_folded_and_cut(tmp_path):
    target, trained, test = write(tmp_path)
    Image.new("RGB", (30, 20)).save(target / "plots/something_new.png")
    pd.DataFrame({"name": ["001", "NA"], "score": [0.123456, 7]}).to_csv(target / "tables/short.csv", index=False)
    pd.DataFrame({"n": range(1000), "m": 1}).to_csv(target / "tables/long.csv", index=False)
    pd.DataFrame(np.eye(40)).to_csv(target / "tables/wide.csv")
    table = pd.DataFrame({"slice": ["class"], "value": ["007"], "examples": [1200], "accuracy": [0.5]})
    table.to_csv(target / "tables/slices.csv", index=False)
    report.write(target, trained, test)
    page = Page(target / "report.html")
    assert values(page, "id")[-5:] == ["something_new", "long", "short", "wide", "numbers"]
    assert "Something new" in page.text
    assert "slice value examples accuracy class 007 1,200 0.500" in page.text
    assert "name score 001 0.123 NA 7.000" in page.text
    assert "The first 200 of 1,000 rows; all in tables/long.csv ." in page.text
    assert "A table of 40 rows; all in tables/wide.csv ." in page.text
    assert page.tags.count("details") == 1
    assert page.source.count("<td") < 1500


def test_hostile_names_and_texts_stay_text(tmp_path):
    page = page_of(tmp_path, kind="text", classes=sorted(set(HOSTILE)), texts=HOSTILE, examples=80)
    assert page.open == []
    assert page.tags.count("script") == 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[4], HOSTILE[5], HOSTILE[6]):
        assert page.text.count(name) > 3
    assert " NA " in page.text
    assert "\u202e" not in page.source
    assert "x" * 300 not in page.source


MODELS = [  # name, changes of the metrics, of the facts, bytes
    ("large", {"val_accuracy": 0.8, "accuracy": 0.74, "parameters": 9_000_000}, {"flops": 100_000_000}, 3_600_000),
    ("small", {"val_accuracy": 0.7, "parameters": 61_706}, {"flops": 9_000_000}, 246_824),
    ("quick", {"val_accuracy": 0.7, "val_loss": 1.1, "auc": 0.9, "parameters": 8_000}, {"flops": 3_000_000}, 32_000),
]
OUTCOME = {"dataset": "pets", "model": "large", "version": 3, "promoted": False, "p": 0.034, "power": 0.512,
           "reason": "not better than <b>chance</b> explains", "slices": {"class <script>": (20, -0.05)},
           "champion": {"version": 2, "model": "small"}}  # fmt: skip


@pytest.fixture
def compared(workspace):
    """data/register/pets with the comparison of three models; small is champion."""
    entries = {"train": {name: {"dataset": "pets"} for name, *_ in MODELS[::-1]}}
    sections = {"fetch": {}, "ingest": {}, "augment": {}, "register": {}}
    (workspace / "params.yaml").write_text(json.dumps(sections | entries))
    for name, metrics, facts, size in MODELS:
        trained, evaluated = (workspace / "data" / stage / "pets" / name for stage in ("train", "evaluate"))
        for place in (trained, evaluated):
            place.mkdir(parents=True)
        (trained / "model.keras").write_bytes(bytes(size))
        (trained / "run.json").write_text(json.dumps(FACTS | facts | {"model": name}))
        (evaluated / "metrics.json").write_text(json.dumps(ACCURACY | metrics))
        took = TOOK | {"seconds": facts["flops"] / 1e6}
        (evaluated / "measured.js").write_text(measured_js({"model": name}, took))
    target = workspace / "data/register/pets"
    target.mkdir(parents=True)
    comparison.write(target, OUTCOME, comparison.sha256(workspace / "data/train/pets/small/model.keras"))
    return target


def test_the_comparison_has_a_row_for_each_model_the_best_on_validation_first(compared):
    page = Page(compared / "comparison.html")
    assert page.open == []
    rows = re.findall(r"(large|small|quick) (champion )?7[45]\.00% 60\.0% to 86\.0%", page.text)
    assert rows == [("large", ""), ("small", "champion "), ("quick", "")]
    assert "80.00% 9,000,000 3.60 – – – –" in page.text
    assert [value for value in values(page, "href") if not value.startswith("#")] == [
        f"../../evaluate/pets/{name}/report.html" for name, *_ in MODELS
    ]
    assert "The champion is version 2, small." in page.text
    assert "has not become champion: not better than <b>chance</b> explains." in page.text
    assert "p = 0.034" in page.text
    assert "with a probability of 51%" in page.text
    assert "class <script> 20 -0.050" in page.text
    assert page.tags.count("script") == 2 + len(MODELS)
    assert page.tags.count("img") == 2
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", page.source)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def look(tab, page, sections):
    """Opens a page as people with a phone and with a wide screen see it, in both colour schemes."""
    for width in (400, 1400):
        for scheme in ("light", "dark"):
            tab.size(width)
            tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.go(page.as_uri())
            assert tab.complaints() == []
            asked = [address for address in tab.requests() if not address.startswith("data:")]
            assert asked[0] == page.as_uri()
            assert all(address.startswith("file:") and address.endswith("/measured.js") for address in asked[1:])
            assert tab.run("[...document.querySelectorAll('section')].map((one) => one.id)") == sections
            assert tab.run("[...document.querySelectorAll('section h2')].every((one) => one.checkVisibility())")
            assert tab.run("Promise.all([...document.images].map((one) => one.decode())).then(() => true)")
            assert tab.run("[...document.images].every((one) => one.naturalWidth > 0)")
            # Nothing to be scrolled sideways, and no text smaller than a reader can read.
            assert tab.run("document.documentElement.scrollWidth") <= width
            sizes = "[...document.querySelectorAll('body *')].map((one) => parseFloat(getComputedStyle(one).fontSize))"
            assert tab.run(f"Math.min(...{sizes})") >= 11
            tab.picture(page.with_name(f"{page.stem}-{width}-{scheme}.png"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_is_whole_and_readable_in_a_browser(kind, tab, tmp_path, monkeypatch):
    monkeypatch.setattr(report.outbox, "MEASURED", tmp_path / "measured")
    report.outbox.keep(FACTS, TOOK)
    page_of(tmp_path, kind=kind)
    own = ["samples"] if kind == "translation" else ["classes", "confusion", "errors"]
    look(tab, tmp_path / "data/evaluate/pets/small/report.html", ["curves", *own, "numbers"])
    text = " ".join(tab.run("document.querySelector('.numbers').innerText").split())
    assert "training 12 s 3 epochs, on cpu:0" in text
    assert "speed 6,789/s examples in training; 23,456/s in validation memory 1,234 MiB" in text


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(tab, tmp_path):
    page_of(tmp_path, kind="text", classes=sorted(set(HOSTILE)), texts=HOSTILE, examples=80)
    look(
        tab, tmp_path / "data/evaluate/pets/small/report.html", ["curves", "classes", "confusion", "errors", "numbers"]
    )


@pytest.mark.slow
def test_the_comparison_is_sorted_by_mouse_and_keyboard(tab, compared):
    look(tab, compared / "comparison.html", ["models", "costs", "decision"])
    names = "[...document.querySelectorAll('tbody th a')].map((one) => one.textContent)"
    heading = "[...document.querySelectorAll('th button')].find((one) => one.textContent === '{}')"
    order = "[...document.querySelectorAll('th')].map((one) => one.ariaSort).filter((one) => one && one !== 'none')"
    assert (tab.run(names), tab.run(order)) == (["large", "small", "quick"], ["descending"])
    tab.run(heading.format("parameters") + ".click()")
    assert (tab.run(names), tab.run(order)) == (["quick", "small", "large"], ["ascending"])
    assert tab.run("document.querySelector('[data-measured=seconds]').textContent") == "3"  # of quick, which is first
    tab.run(heading.format("training, s") + ".focus()")
    for expected in (["quick", "small", "large"], ["large", "small", "quick"]):
        for kind in ("keyDown", "keyUp"):
            tab.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        assert tab.run(names) == expected
    tab.run(heading.format("auc") + ".click()")
    assert tab.run(names)[0] == "quick"  # the others have none
    tab.run(heading.format("model") + ".click()")
    assert tab.run(names) == ["large", "quick", "small"]
