import numpy as np
import pytest

from convoy.data.shards import Shards
from convoy.data.vocabulary import MASK
from convoy.errors import ConfigurationError
from convoy.files import read_sealed
from stages.augment import text, volumes
from stages.augment.augment import augment
from stages.augment.draws import Draws
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest

WORDS = [f"w{number}" for number in range(20)]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_swapping_keeps_every_word():
    changed = text.swapped(WORDS, 0.5, rng())
    assert sorted(changed) == sorted(WORDS)
    assert 2 <= sum(a != b for a, b in zip(changed, WORDS, strict=True)) <= 20
    assert text.swapped(WORDS, 0, rng()) == WORDS == [f"w{number}" for number in range(20)]


def test_deleting_takes_about_the_share_and_never_all():
    left = [len(text.deleted(WORDS, 0.3, rng(seed))) for seed in range(200)]
    assert 13.4 < np.mean(left) < 14.6  # 14 +- 3 standard errors of sqrt(20 * 0.3 * 0.7 / 200)
    assert text.deleted(["alone"], 1, rng()) == ["alone"]
    changed = text.deleted(WORDS, 0.3, rng())
    assert changed == [word for word in WORDS if word in changed]  # in their order


def test_inserting_puts_in_known_words_as_often_as_they_occur():
    known, frequency = ["often", "seldom"], np.array([0.9, 1.0])
    counts = {"often": 0, "seldom": 0}
    for seed in range(200):
        changed = text.inserted(WORDS, 0.25, known, frequency, rng(seed))
        assert [word for word in changed if word in WORDS] == WORDS
        for word in known:
            counts[word] += changed.count(word)
    assert 900 < sum(counts.values()) < 1100
    assert 0.07 < counts["seldom"] / sum(counts.values()) < 0.13


def test_masking_hides_spans_and_leaves_a_word():
    hidden = [text.masked(WORDS, 0.3, 3, rng(seed)).count(MASK) for seed in range(200)]
    assert 5 < np.mean(hidden) <= 6.2  # 6, less where spans overlap
    for seed in range(20):
        assert any(word != MASK for word in text.masked(["a", "b"], 1, 3, rng(seed)))
    assert len(text.masked(WORDS, 0.3, 3, rng())) == 20


def test_misspelling_changes_about_the_share_of_the_characters():
    word = "abcdefghij" * 10
    changed = [text.misspelt(word, 0.1, rng(seed)) for seed in range(50)]
    assert all(90 <= len(one) <= 110 for one in changed)
    assert all(set(one) <= set(word) for one in changed)
    assert sum(one != word for one in changed) == 50
    assert text.misspelt("a", 1, rng()) != ""


def test_volumes_are_mirrored_and_turned_without_a_new_voxel():
    volume = rng().integers(0, 256, (1, 4, 5, 5, 1), np.uint8)
    off = {"shift": 0, "noise": 0}
    seen = set()
    for seed in range(60):
        draws = Draws([b"%d" % seed])
        changed = volumes.change(volume, draws, mirror=["width"], turn=["depth"], **off)
        assert changed.shape == volume.shape
        assert sorted(changed.flat) == sorted(volume.flat)
        seen.add(changed.tobytes())
    assert len(seen) == 8  # the symmetries of the square
    np.testing.assert_array_equal(volumes.change(volume, Draws([b"1"]), mirror=[], turn=[], **off), volume)


def test_volumes_move_by_whole_voxels_and_the_edge_goes_on():
    volume = np.arange(27).reshape(3, 3, 3, 1)
    moved = volumes.shifted(volume, (1, 0, -1))
    np.testing.assert_array_equal(moved[1:, :, :-1], volume[:-1, :, 1:])
    np.testing.assert_array_equal(moved[0, :, :-1], volume[0, :, 1:])


@pytest.fixture
def pairs(workspace):
    folder = workspace / "data/raw/pairs"
    folder.mkdir(parents=True)
    lines = [f"sentence number {number} of many,ihr Satz Nummer {number} von vielen" for number in range(60)]
    (folder / "pairs.csv").write_text("source,target\n" + "\n".join(lines))
    ingest("pairs", Ingest(kind="translation", near_duplicates=False))
    return workspace


def test_of_a_pair_the_source_is_changed_and_the_target_stays_its_translation(pairs):
    augment("pairs", Augment(copies=2, seed=0, swap=0.5, misspell=0.1, subwords=60))
    out, train = Shards(pairs / "data/augment/pairs/train"), Shards(pairs / "data/ingest/pairs/train")
    n = len(train)
    assert len(out) == 3 * n
    assert out.column("target").tolist() == train.column("target").tolist() * 3
    assert out.column("source")[:n].tolist() == train.column("source").tolist()
    assert (out.column("source")[n:] != np.tile(train.column("source"), 2)).mean() > 0.8
    vocabulary = read_sealed(pairs / "data/augment/pairs/about.json")["vocabulary"]
    assert ["number", n] in vocabulary["source"]["words"]  # of the originals alone
    assert ["Nummer", n] in vocabulary["target"]["words"]


def test_texts_that_were_there_before_keep_their_copies(pairs):
    options = {"copies": 2, "seed": 0, "swap": 0.3, "misspell": 0.1, "mask": 0.1}
    augment("pairs", Augment(**options))
    file = pairs / "data/raw/pairs/pairs.csv"
    file.write_text(file.read_text() + "\none more of them,noch einer von ihnen\nand another,und noch einer")
    ingest("pairs", Ingest(kind="translation", near_duplicates=False))
    augment("pairs", Augment(**options))
    folder = pairs / "data/augment/pairs"
    edited = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
    for name in ("about.json", "key.json"):
        (folder / name).unlink()  # so that nothing is taken from it
    augment("pairs", Augment(**options))
    assert {path.name: path.read_bytes() for path in (folder / "train").iterdir()} == edited


def test_new_words_change_the_insertions_so_every_copy_is_made_again(pairs, capsys):
    augment("pairs", Augment(copies=1, seed=0, insert=0.3))
    n = len(Shards(pairs / "data/ingest/pairs/train"))
    augment("pairs", Augment(copies=1, seed=0, insert=0.3))
    assert "0 copies were new" in capsys.readouterr().out
    file = pairs / "data/raw/pairs/pairs.csv"
    lines = [f"\nquite new words {number},ganz neue {number}" for number in range(20)]
    file.write_text(file.read_text() + "".join(lines))
    ingest("pairs", Ingest(kind="translation", near_duplicates=False))
    augment("pairs", Augment(copies=1, seed=0, insert=0.3))
    grown = len(Shards(pairs / "data/ingest/pairs/train"))
    assert grown > n
    assert f"{grown} copies were new" in capsys.readouterr().out


def test_volumes_are_not_moved_by_a_part_of_a_voxel(workspace):
    for number in range(20):
        folder = workspace / "data/raw/blocks" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number}.npy", np.full((2, 3, 3), number, np.uint8))
    ingest("blocks", Ingest(kind="volumes", size=(2, 3, 3), mode="grey", near_duplicates=False))
    with pytest.raises(ConfigurationError, match=r"augment.blocks: shift = 1.5: volumes move by whole voxels"):
        augment("blocks", Augment(copies=1, seed=0, shift=1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rotate": 3.0, "flip": ["a"]},
            r"augment.pairs: rotate, flip cannot change translation. Allowed: swap, delete",
        ),
        ({"subwords": 4}, "subwords = 4"),
    ],
)
def test_what_cannot_change_texts_is_refused(pairs, options, message):
    with pytest.raises(ConfigurationError, match=message):
        augment("pairs", Augment(copies=1, seed=0, **options))
