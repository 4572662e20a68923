import gzip
import io
import re
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from convoy.errors import InputRefusedError
from convoy.kinds.fingerprints import fingerprint, text_fingerprint
from stages.ingest.near.duplicates import group as groups
from stages.ingest.near.pictures import find_pairs as pairs
from stages.ingest.near.texts import find_pairs as text_pairs


def scenes(count, seed=0):
    """Colour pictures of different clouds of spots."""
    rng = np.random.default_rng(seed)
    clouds = gaussian_filter(rng.normal(size=(count, 120, 160, 3)), (0, 6, 6, 1))
    clouds = 128 + 50 * clouds / clouds.std((1, 2, 3), keepdims=True)
    return [Image.fromarray(cloud) for cloud in np.clip(clouds, 0, 255).astype(np.uint8)]


def compressed(picture):
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=40)
    return Image.open(file)


def moved(picture):
    return Image.fromarray(np.pad(np.asarray(picture), ((4, 0), (0, 5), (0, 0)), "edge")[:-4, 5:])


CHANGES = {
    "compressed": compressed,
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.3),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.65),
    "less contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(0.65),
    "moved": moved,
    "cut": lambda picture: picture.crop((9, 7, picture.width - 8, picture.height - 7)),
    "cut at one side": lambda picture: picture.crop((picture.width // 12, 0, picture.width, picture.height)),
    "smaller": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "larger": lambda picture: picture.resize((picture.width * 2, picture.height * 2)),
    "grey": lambda picture: picture.convert("L"),
    "cut and compressed": lambda picture: compressed(picture.crop((5, 6, picture.width - 7, picture.height - 4))),
}


def prints(pictures):
    return np.stack([fingerprint(picture) for picture in pictures])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_near_its_original_and_no_other(change):
    originals = scenes(12)
    found = pairs(prints(originals + [change(picture) for picture in originals]))
    assert found.tolist() == [[number, number + 12] for number in range(12)]


@pytest.mark.parametrize(
    "change", [ImageOps.mirror, ImageOps.flip, ImageOps.invert, lambda picture: picture.crop((0, 0, 80, 120))]
)
def test_a_mirror_image_a_negative_and_a_half_are_other_pictures(change):
    originals = scenes(12)
    assert len(pairs(prints(originals + [change(picture) for picture in originals]))) == 0


@pytest.mark.parametrize("change", ["compressed", "darker", "moved", "cut", "smaller", "grey"])
def test_nine_of_ten_copies_of_photos_are_found_and_hardly_a_wrong_one(datasets, change):
    files = sorted((datasets / "caltech101-10").glob("*/*.jpg"))[
        2::10
    ]  # there are copies among the photos, but not among these
    photos = [Image.open(file).convert("RGB") for file in files]
    found = pairs(prints(photos + [CHANGES[change](photo) for photo in photos])).tolist()
    right = [(a, b) for a, b in found if b - a == len(photos)]
    assert len(right) >= 0.9 * len(photos)
    assert len(right) >= 0.99 * len(found)


def test_digits_resemble_each_other_and_are_no_copies(datasets):
    content = gzip.decompress((datasets / "mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    digits = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)[:3000]
    copies = [Image.fromarray(np.roll(digit, 1, axis=1)) for digit in digits[:100]]
    found = pairs(prints([Image.fromarray(digit) for digit in digits] + copies)).tolist()
    right = [(a, b) for a, b in found if b - a == len(digits)]
    assert len(right) == len(found) > 80


def test_pictures_without_detail_take_no_part():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    edge = np.where(np.arange(64) < 30, 0, 255).astype(np.uint8) * np.ones((64, 1), np.uint8)
    grain = np.random.default_rng(0).integers(128, 130, (640, 640), np.uint8)
    blank = np.full((64, 64), 200, np.uint8)
    pictures = [Image.fromarray(values) for values in (ramp, edge, edge.T, grain, blank) for _ in range(2)]
    assert len(pairs(prints(pictures))) == 0


def test_new_pictures_are_compared_with_all_and_old_pairs_stay():
    originals = scenes(40)
    copies = [list(CHANGES.values())[number % len(CHANGES)](picture) for number, picture in enumerate(originals)]
    everything = prints(originals + copies + copies[:10])
    whole = {tuple(pair) for pair in pairs(everything).tolist()}
    assert len(whole) == 60
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.8):
        new = np.flatnonzero(rng.random(len(everything)) < share)
        rest = np.setdiff1d(np.arange(len(everything)), new)
        first = {tuple(pair) for pair in rest[pairs(everything[rest])].tolist()}
        second = {tuple(pair) for pair in pairs(everything, new).tolist()}
        assert first.isdisjoint(second)
        assert first | second == whole


def test_the_order_of_the_pictures_does_not_matter():
    originals = scenes(30)
    everything = prints(originals + [CHANGES["cut"](picture) for picture in originals])
    order = np.random.default_rng(0).permutation(60)
    found = np.sort(order[pairs(everything[order])], axis=1)
    assert sorted(found.tolist()) == pairs(everything).tolist()


def test_none_and_one_picture_have_no_pairs():
    assert pairs(np.zeros((0, 1024), np.uint8)).shape == (0, 2)
    assert pairs(prints(scenes(1))).shape == (0, 2)
    assert pairs(prints(scenes(2)), np.array([], int)).shape == (0, 2)


def test_too_many_alike_are_refused(monkeypatch):
    monkeypatch.setattr("stages.ingest.near.candidates.FEW_CANDIDATES", 10)
    monkeypatch.setattr("stages.ingest.near.candidates.MAX_CANDIDATES", 1)
    with pytest.raises(InputRefusedError, match="more than 20 pairs among 20 examples"):
        pairs(np.repeat(prints(scenes(1)), 20, axis=0))
    with pytest.raises(InputRefusedError, match="more than 20 pairs among 20 examples"):
        text_pairs(texts(["the same again"] * 20))


def test_a_long_search_says_how_long_and_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("convoy.machine.progress.EVERY", 0)
    monkeypatch.setattr("stages.ingest.near.pictures.BLOCK", 4)
    monkeypatch.setattr("stages.ingest.near.pictures.cores", lambda: 2)
    monkeypatch.setattr("stages.ingest.near.pictures.PAIR", 10.0)
    pairs(prints(scenes(12)), title="ingest@photos")
    said = capsys.readouterr().out.splitlines()
    assert re.match("ingest@photos: compares pictures with each other, [0-9]+ pairs: [0-9]+ min, ", said[0])
    assert re.match("ingest@photos: near duplicates: 3 of 3 blocks of pairs, ", said[-1])
    text_pairs(texts(["one two three four", "five six"] * 5), title="ingest@lines")
    assert "ingest@lines: near duplicates: 10 of 10 texts, " in capsys.readouterr().out
    monkeypatch.undo()
    pairs(prints(scenes(12)))
    assert not capsys.readouterr().out


def test_every_mode_shows_the_same_thumbnail():
    colour = scenes(1)[0]
    grey = colour.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 16)  # 12 bits, as a scanner gives them
    assert deep.mode == "I;16"
    assert len(pairs(prints([colour, grey, deep, colour.convert("RGBA")]))) == 6
    clear = Image.new("RGBA", (50, 40), (0, 0, 0, 0))
    assert fingerprint(clear).tolist() == [255] * 1024
    assert fingerprint(Image.new("I;16", (50, 40), 7)).tolist() == [0] * 1024


def test_groups_are_named_after_their_first_member():
    assert groups(6, np.array([[1, 4], [2, 3], [4, 5]])).tolist() == [0, 1, 2, 2, 1, 1]
    assert groups(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def texts(lines):
    return np.stack([text_fingerprint(line) for line in lines])


LONG = "an ambitious and moving film that never quite finds the words it needs"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("good movie", "Good  movie !"),
        ("Straße", "STRASSE"),
        ("ﬁne “film”", 'fine "film"'),
        ("好电影", "好电影。"),
        (LONG, LONG.replace("moving", "touching")),
        (LONG, LONG.replace("the words", "words")),
        (LONG, LONG + " indeed"),
        (LONG * 30, LONG.replace("film", "picture") + LONG * 29),
    ],
)
def test_the_same_words_but_for_one_in_ten_are_near(first, second):
    assert text_pairs(texts([first, second])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("good film", "good movie"),
        ("good", "good good movie"),
        ("not good", "good"),
        ("what is the capital of france ?", "what is the capital of italy ?"),
        ("dog bites man", "man bites dog"),
        ("好电影", "坏电影"),
        (LONG, " ".join(reversed(LONG.split()))),
        ("", ""),
        ("?!", "..."),
    ],
)
def test_other_words_are_another_text(first, second):
    assert len(text_pairs(texts([first, second]))) == 0


def test_text_pairs_are_those_of_comparing_all_with_all():
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{word}" for word in rng.zipf(1.5, rng.integers(1, 30)) % 50) for _ in range(150)]
    for line in lines[:60]:
        words = line.split()
        words[rng.integers(len(words))] = f"w{rng.integers(50)}"
        lines.append(" ".join(words))

    def parts(line):
        words = line.split()
        return set(words) | set(zip(["", *words], [*words, ""], strict=True))

    sets = [parts(line) for line in lines]
    both = combinations(range(210), 2)
    expected = [[a, b] for a, b in both if len(sets[a] & sets[b]) >= 0.74 * len(sets[a] | sets[b])]
    everything = texts(lines)
    assert text_pairs(everything).tolist() == expected
    assert len(expected) > 30
    new = np.flatnonzero(rng.random(210) < 0.2)
    rest = np.setdiff1d(np.arange(210), new)
    found = np.concatenate([rest[text_pairs(everything[rest])], text_pairs(everything, new)])
    assert sorted(found.tolist()) == expected
