import re
import unicodedata

import numpy as np
import pytest

from convoy.data import vocabulary
from convoy.data.vocabulary import BEGIN, END, MASK, PAD, SPECIAL, UNKNOWN, Ragged, Vocabulary
from convoy.errors import ConfigurationError

TEXTS = ["The cat sat on the mat.", "The dog didn't sit!", "Le chat, l'homme et le chien"]


@pytest.fixture
def stored():
    return vocabulary.describe(TEXTS, None)


def test_words_are_without_case_and_apart_from_their_signs():
    assert vocabulary.split("It's NOT good,\u00a0isn't it?", "words") == [
        "it",
        "'s",
        "not",
        "good",
        ",",
        "isn",
        "'t",
        "it",
        "?",
    ]
    assert vocabulary.split("Ａ１ ﬁn", "characters") == list("a1 fin")  # Unicode form NFKC
    assert vocabulary.split("e\u0301t", "words") == ["ét"]


def test_a_vocabulary_has_the_most_frequent_first_and_ties_by_themselves(stored):
    assert stored["words"][0] == ["The", 2]  # with case
    without = Vocabulary.chosen(stored, "words", 2, 1, False, "train.m")
    assert list(without.pieces) == ["the", "le"]
    assert "The" in Vocabulary.chosen(stored, "words", None, 1, True, "train.m").pieces
    backwards = vocabulary.describe(TEXTS[::-1], None)
    assert backwards == stored


def test_what_is_not_known_is_unknown_and_the_rest_has_its_number(stored):
    known = Vocabulary.chosen(stored, "words", 2, 1, False, "train.m")
    assert len(known) == SPECIAL + 2
    [row] = known.encode([f"the {MASK} le zebra"])
    assert row.tolist() == [SPECIAL, UNKNOWN, SPECIAL + 1, UNKNOWN]
    assert known.decode(row) == f"the {MASK} le {MASK}"
    assert len(Vocabulary.chosen(stored, "words", None, 2, False, "train.m")) == SPECIAL + 2


def test_a_text_is_cut_off_at_the_length(stored):
    known = Vocabulary.chosen(stored, "characters", None, 1, False, "train.m")
    rows = known.encode(["the cat", "a"], 3)
    assert rows.lengths.tolist() == [3, 1]
    assert known.decode(rows[0]) == "the"
    assert known.decode(rows[1]) == "a"


@pytest.mark.parametrize("unit", ["words", "characters", "subwords"])
def test_what_travels_with_the_model_reads_texts_the_same(unit):
    stored = vocabulary.describe(TEXTS * 5, 60)
    known = Vocabulary.chosen(stored, unit, None, 1, False, "train.m")
    travelled = Vocabulary.from_json(known.to_json())
    assert len(travelled) == len(known)
    for one, other in zip(known.encode(TEXTS), travelled.encode(TEXTS), strict=True):
        assert one.tolist() == other.tolist()
        assert min(one) >= UNKNOWN


def test_subwords_give_the_text_back():
    known = Vocabulary.chosen(vocabulary.describe(TEXTS * 5, 60), "subwords", None, 1, False, "train.m")
    rows = known.encode(TEXTS)
    assert [known.decode(row) for row in rows] == TEXTS
    assert not {PAD, BEGIN, END} & set(rows.flat.tolist())
    assert UNKNOWN in known.encode(["Ωmega"])[0]


def test_subwords_that_were_not_learned_or_cannot_be_are_refused(stored):
    with pytest.raises(ConfigurationError, match=r"train.m: its data set has no subwords; give augment"):
        Vocabulary.chosen(stored, "subwords", None, 1, False, "train.m")
    with pytest.raises(ConfigurationError, match="subwords = 5"):
        vocabulary.describe(TEXTS, 5)
    with pytest.raises(ConfigurationError, match="none of the words occurs min_count = 9 times"):
        Vocabulary.chosen(stored, "words", None, 9, False, "train.m")


def test_a_hidden_word_is_unknown_in_every_unit():
    stored = vocabulary.describe(TEXTS * 5, 60)
    for unit in ("words", "characters", "subwords"):
        known = Vocabulary.chosen(stored, unit, None, 1, False, "train.m")
        one, other = known.encode([f"the {MASK} sat", "the sat"])
        assert one.tolist().count(UNKNOWN) == other.tolist().count(UNKNOWN) + 1, unit


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_what_was_counted_is_known_whatever_its_script(unit):
    texts = ["Μαΐου İstanbul Straße", "नमस्ते दुनिया", "l’été don't"]
    known = Vocabulary.chosen(vocabulary.describe(texts, None), unit, None, 1, False, "train.m")
    assert UNKNOWN not in known.encode(texts).flat
    assert vocabulary.split(texts[1], "words") == ["नमस्ते", "दुनिया"]
    assert vocabulary.split(texts[2], "words") == ["l", "’été", "don", "'t"]
    assert len(known.encode(["ß"])[0]) == 1


def test_a_word_has_the_marks_of_every_script():
    """Random texts against the rule as it is read: every mark by itself in the set."""
    marks = "".join(mark for mark in map(chr, range(0x300, 0x1F000)) if unicodedata.category(mark)[0] == "M")
    rule = re.compile(rf"(?<=[\w{marks}])['’][\w{marks}]+|[\w{marks}]+|[^\w\s{marks}]")
    rng = np.random.default_rng(0)
    usual = list("aB1_' .-\n\x1c’é")
    for mark in marks:
        text = "".join(rng.choice([*usual, mark, chr(ord(mark) - 1), chr(ord(mark) + 1)], 12))
        normal = unicodedata.normalize("NFKC", text)
        assert vocabulary.split(text, "words", case=True) == rule.findall(normal), text


def test_rows_are_filled_up_to_a_multiple_or_the_length():
    rows = Ragged.of([[5, 6, 7, 8, 9], [5]], None)
    padded = vocabulary.pad(list(rows))
    assert padded.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0]]
    assert vocabulary.pad(list(rows), 6).shape == (2, 6)
    assert vocabulary.pad([], None).shape == (0, vocabulary.MULTIPLE)


def test_batches_by_length_hold_every_row_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 60, 1000)
    order = np.random.default_rng(1).permutation(1000)
    batches = list(vocabulary.by_length(lengths, order, 32))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    at_random = sum(32 * lengths[order[start : start + 32]].max() for start in range(0, 1000, 32))
    assert computed < 1.1 * lengths.sum() < 0.7 * at_random
