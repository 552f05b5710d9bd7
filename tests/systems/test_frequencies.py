"""Frequencies of calibration text: against plain dictionaries, and as a distribution; files that cannot be used."""

import math
import re
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.data import model
from disco_core.systems.compression import Frequencies, keep, word_starts

V = 7
TEXTS = st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=4).filter(any)
PROMPTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)
BEGINS = st.lists(st.booleans(), min_size=V, max_size=V)


def words_of(ids, begins):
    """Words as lists of positions."""
    words = []
    for at, id in enumerate(ids):
        if at == 0 or begins[id]:
            words.append([])
        words[-1].append(at)
    return words


class Plain:
    """The same with dictionaries, one token at a time, from the definition."""

    def __init__(self, texts):
        self.single = Counter(id for text in texts for id in text)
        self.pair = Counter(pair for text in texts for pair in pairwise(text))

    def probability(self, before, id):
        alone = (self.single[id] + 1) / (self.single.total() + V)
        after = {pair: count for pair, count in self.pair.items() if pair[0] == before}
        if not after:
            return alone
        return (self.pair[before, id] + len(after) * alone) / (sum(after.values()) + len(after))

    def scores(self, ids, begins):
        each = [-math.log(self.probability(before, id)) for before, id in zip([None, *ids], ids, strict=False)]
        words = words_of(ids, begins)
        return [sum(each[at] for at in word) / len(word) for word in words for _ in word]

    def unknown(self, ids, begins):
        words = words_of(ids, begins)
        strange = [
            any(not self.single[ids[at]] or (at > word[0] and not self.pair[ids[at - 1], ids[at]]) for at in word)
            for word in words
        ]
        return sum(strange) / len(words)


@given(TEXTS, PROMPTS, BEGINS)
def test_scores_are_those_of_plain_dictionaries(texts, ids, begins):
    found, plain = Frequencies.count(texts, begins), Plain(texts)
    assert found.scores(ids) == pytest.approx(plain.scores(ids, begins), rel=1e-12)
    assert found.scores(np.array(ids, np.int32)).tolist() == found.scores(ids).tolist()
    assert found.unknown(ids) == pytest.approx(plain.unknown(ids, begins))


@given(TEXTS, st.integers(0, V - 1))
def test_the_probabilities_after_a_token_add_up_to_one(texts, before):
    found = Frequencies.count(texts, [True] * V)
    assert sum(math.exp(-found.scores([before, id])[1]) for id in range(V)) == pytest.approx(1)
    assert sum(math.exp(-found.scores([id])[0]) for id in range(V)) == pytest.approx(1)


@given(TEXTS, PROMPTS, BEGINS, st.floats(0.01, 1))
def test_at_most_one_word_is_cut(texts, ids, begins, share):
    kept = set(keep(Frequencies.count(texts, begins).scores(ids), share).tolist())
    cut = [word for word in words_of(ids, begins) if 0 < len(kept & set(word)) < len(word)]
    assert len(cut) <= 1


@given(TEXTS, PROMPTS, BEGINS)
def test_a_file_gives_the_same_scores(tmp_path_factory, texts, ids, begins):
    folder = tmp_path_factory.mktemp("frequencies")
    (folder / "model.gguf").write_bytes(b"GGUF")
    found = Frequencies.count(texts, begins)
    found.save(folder / "frequencies.npz", folder / "model.gguf")
    again = Frequencies.load(folder / "frequencies.npz", folder / "model.gguf")
    assert again.scores(ids).tolist() == found.scores(ids).tolist()
    assert [path.name for path in sorted(folder.iterdir())] == ["frequencies.npz", "model.gguf"]


# --- bad input


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    Frequencies.count([[0, 1, 2, 1]], [True] * V).save(tmp_path / "f.npz", tmp_path / "model.gguf")
    return tmp_path / "f.npz"


def refused(*arguments):
    with pytest.raises(dc.InputError) as caught:
        Frequencies.load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frequencies_of_another_model_are_refused(file, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF, another")
    assert refused(file, other) == (f"{file} was made for another model than other.gguf; count the frequencies again")
    assert refused(file, tmp_path / "none.gguf").startswith(f"{tmp_path / 'none.gguf'} cannot be read: No such file")
    assert refused(file, 5) == "parent must be a path, got 5"
    assert refused(5) == "path must be a path, got 5"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", None])
def test_a_file_that_holds_no_frequencies_is_named(file, content):
    if content is None:
        np.savez(file, parent_sha256=np.array("0" * 64), tokens=np.zeros(3, np.int64))
    else:
        file.write_bytes(content)
    assert re.match(rf"{file} does not hold begins_word, tokens, .*; count the frequencies again$", refused(file))
    file.unlink()
    assert refused(file) == f"{file} cannot be read: No such file or directory; count the frequencies again"


def test_no_damage_to_a_file_ends_in_a_traceback(file, tmp_path):
    whole, damaged, rng = file.read_bytes(), tmp_path / "damaged.npz", np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        damaged.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)
        with suppress(dc.InputError):
            Frequencies.load(damaged, tmp_path / "model.gguf")


def test_a_file_is_never_half_written(file, tmp_path):
    before = file.read_bytes()
    with pytest.raises(dc.InputError, match=r"^cannot write .*f\.npz for the model .*none\.gguf: No such file"):
        Frequencies.count([[1]], [True] * V).save(file, tmp_path / "none.gguf")
    assert file.read_bytes() == before
    missing = tmp_path / "none" / "f.npz"
    with pytest.raises(dc.InputError, match=rf"^cannot write {missing} .*: No such file or directory$"):
        Frequencies.count([[1]], [True] * V).save(missing, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("texts", "begins", "words"),
    [
        ([], [True], "texts must hold at least one token"),
        ([[], []], [True], "texts must hold at least one token"),
        ([[0, 1]], [True], "ids must be from 0 to 0, got 1"),
        ([[-1]], [True, False], "ids must be from 0 to 1, got -1"),
        ([[0.5]], [True], r"ids must be a list of at least one token id, got \[0.5\]"),
        ([[0]], [1], "frequencies must be bools and counts"),
        ([[0]], [[True]], "frequencies must be bools and counts"),
    ],
)
def test_texts_that_cannot_be_counted_are_named(texts, begins, words):
    with pytest.raises(dc.InputError, match=f"^{words}"):
        Frequencies.count(texts, begins)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "ids must be a list"),
        ([[1]], "ids must be a list"),
        ("ab", "ids must be"),
        ([V], "ids must be from 0 to 6"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_named(ids, words):
    found = Frequencies.count([[0]], [True] * V)
    for function in (found.scores, found.unknown):
        with pytest.raises(dc.InputError, match=f"^{words}"):
            function(ids)


# --- the device model's vocabulary


@pytest.mark.slow
def test_the_words_of_a_text_are_its_words():
    vocabulary = model.tokenizer()
    begins = word_starts(vocabulary)
    text = "It didn't rain on 1,234 days in Saarbrücken (Germany); nobody knew why!\nStrange"
    ids = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
    words = [vocabulary.detokenize([ids[at] for at in word]).decode() for word in words_of(ids, begins)]
    expected = ["It", " didn't", " rain", " on", " 1", ",234", " days", " in", " Saarbrücken", " (Germany", ");"]
    assert words == [*expected, " nobody", " knew", " why", "!", "\nStrange"]
