"""The embedded data sets are what their descriptions say."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.fetch import samples
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with every sample but digits, which the pipeline's own test fetches."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("docs", "reviews", "numbers", "clips"):
        (folder / name).mkdir()
        samples.SAMPLES[name](folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reviews", "numbers", "clips"])
def test_a_sample_has_the_same_bytes_every_time(written, tmp_path, name):
    samples.SAMPLES[name](tmp_path)
    first, second = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (written / name, tmp_path)
    )
    assert first
    assert first == second


def test_docs_have_eight_classes_and_do_not_name_them(written):
    table = pd.read_csv(written / "docs/docs.csv")
    assert sorted(table["label"].unique()) == sorted(samples.LIBRARIES)
    assert table["label"].value_counts().min() > 500
    assert table["text"].is_unique
    assert not table["text"].str.contains("|".join(samples.LIBRARIES), case=False).any()
    assert table["text"].str.split().str.len().between(6, 30).all()
    assert not table["text"].str.contains("---").any()  # the rulers below headings, by which libraries could be told


def test_docs_are_found_also_where_the_libraries_lie_below_a_folder_called_tests(tmp_path, monkeypatch):
    place = tmp_path / "tests" / "library"
    (place / "tests").mkdir(parents=True)
    (place / "code.py").write_text('"""Gives back what was put in before that."""')
    (place / "tests/test_code.py").write_text('"""Shows that nothing of this kind is lost."""')

    class Spec:
        submodule_search_locations = (str(place),)

    monkeypatch.setattr(samples, "LIBRARIES", ("library",))
    monkeypatch.setattr(samples, "find_spec", lambda name: Spec)
    samples.docs(tmp_path)
    assert pd.read_csv(tmp_path / "docs.csv")["text"].tolist() == ["Gives back what was put in before that."]


def test_reviews_are_balanced_and_split_by_subject(written):
    table = pd.read_csv(written / "reviews/reviews.csv")
    assert len(table) >= 1000
    assert (pd.crosstab(table["subject"], table["label"]) == 16).all(axis=None)
    assert (table.groupby("subject")["split"].nunique() == 1).all()
    assert table.groupby("split")["subject"].nunique().to_dict() == {"test": 12, "train": 39, "val": 9}
    assert table["text"].str.contains(r"\b(?:not|never|no|nothing|nobody)\b|n't", case=False).mean() > 0.2


@pytest.mark.slow
def test_reviews_have_no_near_duplicates(written, workspace):
    (workspace / "data/raw").mkdir(parents=True)
    Path(workspace, "data/raw/reviews").symlink_to(written / "reviews")
    ingest("reviews", Ingest(kind="text"))
    assert pd.read_csv(workspace / "data/ingest/reviews/duplicates.csv").empty


def test_numbers_are_what_the_languages_say_and_stand_there_once(written):
    table = pd.read_csv(written / "numbers/numbers.csv")
    assert table["source"].is_unique
    known = dict(zip(table["source"], table["target"], strict=True))
    assert [known[word] for word in ("seventy-one", "eighty", "twenty-one", "ninety-nine")] == [
        "soixante et onze", "quatre-vingts", "vingt et un", "quatre-vingt-dix-neuf",
    ]  # fmt: skip
    first = table[table["source"].str.startswith("the first of January")]
    assert first["target"].str.startswith("le premier janvier").all()
    assert len(first) > 0
    prices = table[table["source"].str.endswith("cents")]
    assert prices["target"].str.fullmatch(re.compile(r".* euros et .* centimes")).all()
    assert len(prices) > 2000


@pytest.mark.slow
def test_clips_move_as_their_class_says_and_start_anywhere(written):
    starts = set()
    for path in (written / "clips").rglob("*.npy"):
        frames = np.load(path).astype(float)
        moves = [_moved(*pair) for pair in pairwise(frames)]
        expected = np.diff(samples.MOTIONS[path.parent.name], axis=0).astype(int)
        assert moves == [tuple(move) for move in expected.tolist()], path
        starts.add(tuple(np.unravel_index(frames[0].argmax(), frames[0].shape)))
    assert len(starts) > 200  # of 256


def _moved(before, after):
    """How far a frame's content went, round the edges, by phase correlation (Kuglin and Hines 1975)."""
    product = np.conj(np.fft.fft2(before - before.mean())) * np.fft.fft2(after - after.mean())
    place = np.unravel_index(np.fft.ifft2(product).real.argmax(), before.shape)
    return tuple(int((step + 8) % 16 - 8) for step in place)
