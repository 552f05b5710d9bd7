"""Compression: what is kept against every subset there is, scores against llama-cpp-python's own logits."""

from itertools import combinations
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.data import model
from disco_core.endpoints.llama_cpp import BATCH
from disco_core.systems.compression import keep, kept_tokens, protected_spans, self_information, split_question

BODY = (
    "The lighthouse keeper counted 17 ships before noon. None of them came into the harbour, since the tide was low. "
    "Größe, 東京 and 🌱 were painted on three of them!\n\nHe wrote all of it down.    Later it rained."
)
QUESTION = " How many ships did he count?"
MARKS = model.TEMPLATE.split("{prompt}")
PIECES = [(MARKS[0], True), (BODY, False), (QUESTION, True), (MARKS[1], True)]


def test_a_share_in_hundredths_is_rounded_up_exactly():
    length, percent = np.arange(1, 5001), np.arange(1, 101)[:, None]
    assert np.array_equal(kept_tokens(length, percent / 100), -(-length * percent // 100))


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 7]), st.booleans()), min_size=1, max_size=9), st.floats(0.01, 1)
)
def test_the_kept_are_the_best_of_all_subsets(tokens, rho):
    """Of all sets of that size with every protected token, the one that says most; of those the first."""
    scores, protected = (np.array(column) for column in zip(*tokens, strict=True))
    size = max(int(kept_tokens(len(tokens), rho)), int(protected.sum()))
    allowed = [some for some in combinations(range(len(tokens)), size) if set(np.flatnonzero(protected)) <= set(some)]
    best = min(allowed, key=lambda some: (-sum(scores[list(some)]), some))
    assert keep(scores, rho, protected).tolist() == list(best)


def test_an_infinite_score_is_not_protected_and_nothing_protected_gives_way_to_it():
    assert keep([inf, 1.0, 2.0], 0.3, [False, True, False]).tolist() == [1]
    assert keep([inf, 1.0, 2.0], 0.3).tolist() == [0]
    assert keep([inf, 1.0, 2.0], 1.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 0.5), "scores must not be empty"),
        (([1.0, np.nan], 0.5), "scores must be numbers, got nan"),
        (([[1.0]], 0.5), r"scores must be one-dimensional, got shape \(1, 1\)"),
        (([1.0], 0), "rho must be finite and above 0, got 0"),
        (([1.0], 1.1), r"rho must be finite and above 0, got 1"),
        (([1.0, 2.0], 0.5, [True]), r"protected must be 2 bools, one per token, got bool \(1,\)"),
        (([1.0, 2.0], 0.5, [0, 1]), "protected must be 2 bools, one per token, got int64"),
    ],
)
def test_what_cannot_be_kept_from_is_named(arguments, words):
    with pytest.raises(dc.InputError, match=words):
        keep(*arguments)


@pytest.mark.parametrize(
    ("words", "last"),
    [
        ("Name a colour", "Name a colour"),
        ("The sky is red. Why?", " Why?"),
        ("The sky is red. Why? ", " Why? "),
        ("Is 3.5 more than 3.25? Say why", " Say why"),
        ('She said "go!" (He did.) What then?', " What then?"),
        ("Summarise:\n\nIt rained\nIt stopped", "\nIt stopped"),
        ("空が赤い。なぜですか？", "なぜですか？"),
        ("  Why?", "  Why?"),
        (" \nWhy?", " \nWhy?"),
        ("Why?\n", "Why?\n"),
        ("", ""),
    ],
)
def test_the_last_sentence_is_the_question(words, last):
    body, found = split_question(words)
    assert (body + found, found) == (words, last)


@given(st.text(st.sampled_from("ab .?!\n\"'。")))
def test_the_two_parts_are_the_words(words):
    body, last = split_question(words)
    assert body + last == words
    assert bool(last.strip()) == bool(words.strip())
    assert not body or body.strip()


def spelt(vocabulary, ids):
    return vocabulary.detokenize(list(ids), special=True).decode(errors="replace")


@pytest.mark.slow
def test_protected_tokens_are_those_that_touch_a_protected_piece():
    vocabulary = model.tokenizer()
    ids, mask = protected_spans(PIECES, vocabulary)
    text = "".join(piece for piece, _ in PIECES)
    assert ids.tolist() == vocabulary.tokenize(text.encode(), add_bos=False, special=True)
    assert ids.size == model.count_tokens(model.build(BODY + QUESTION))
    head, tail = (vocabulary.tokenize(piece.encode(), add_bos=False, special=True) for piece in
                  (MARKS[0], QUESTION + MARKS[1]))  # fmt: skip
    free = np.flatnonzero(~mask)
    assert (free[0], ids.size - 1 - free[-1]) == (len(head), len(tail))
    assert np.all(np.diff(free) == 1)
    assert spelt(vocabulary, ids[free]) == BODY


@pytest.mark.slow
@pytest.mark.parametrize("text", ["photosynthesis of 🌱🚀 in 東京", " " * 200 + "end"])
def test_a_token_across_two_pieces_is_protected_wherever_they_part(text):
    """Against one byte after the other: a token is protected if any of its bytes is."""
    vocabulary = model.tokenizer()
    whole = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
    spellings = [bytes(vocabulary._model.detokenize([id], special=True)) for id in whole] if text[0] != " " else None
    for cut in range(len(text) + 1):
        for first in (True, False):
            ids, mask = protected_spans([(text[:cut], first), (text[cut:], not first)], vocabulary)
            assert ids.tolist() == whole
            at, boundary = 0, len(text[:cut].encode())
            for i, spelling in enumerate(spellings or []):
                places = range(at, at + len(spelling))
                at += len(spelling)
                assert mask[i] == any((place < boundary) == first for place in places)


class WithBOS:
    """The vocabulary as of a model that asks for a BOS, which is here the mark that begins a turn."""

    def __init__(self):
        self._vocabulary = model.tokenizer()
        self._model, self.token_bos = self._vocabulary._model, self._vocabulary.token_bos

    def tokenize(self, text, add_bos, special):
        return [self.token_bos()] * add_bos + self._vocabulary.tokenize(text, add_bos=False, special=special)


@pytest.mark.slow
def test_a_bos_is_protected_and_not_doubled():
    plain = model.tokenizer().tokenize(BODY.encode(), add_bos=False, special=True)
    ids, mask = protected_spans([(BODY, False), ("", True)], WithBOS())
    assert ids.tolist() == [WithBOS().token_bos(), *plain]
    assert np.flatnonzero(mask).tolist() == [0]
    mark = model.tokenizer().detokenize([WithBOS().token_bos()], special=True).decode()
    ids, mask = protected_spans([(mark, False), (BODY, False)], WithBOS())
    assert ids.tolist() == [WithBOS().token_bos(), *plain]
    assert not mask.any()


@pytest.mark.slow
def test_a_prompt_without_text_is_refused():
    with pytest.raises(dc.InputError, match="the prompt must not be empty"):
        protected_spans([("", True)], model.tokenizer())


@pytest.fixture(scope="module")
def cloud():
    llama = model.load(n_ctx=256, logits_all=True, n_batch=128, n_threads=1, n_threads_batch=1)
    yield llama
    llama.close()


def log_likelihoods(llama, ids, at_once):
    """log p(token | before) of every token but the first, from llama-cpp-python's own logits, one row at a time."""
    llama.reset()
    for at in range(0, len(ids), at_once):
        llama.eval(ids[at : at + at_once])
    rows = llama.scores[: len(ids) - 1].astype(np.float64)
    return np.array([row[id] - np.logaddexp.reduce(row) for row, id in zip(rows, ids[1:], strict=True)])


@pytest.mark.slow
def test_self_information_is_what_the_model_says(cloud):
    ids = protected_spans(PIECES, cloud)[0].tolist()
    assert len(ids) > 2 * BATCH  # so that there are seams between batches
    scores = self_information(cloud, ids)
    assert scores[0] == inf
    assert scores[1:] == pytest.approx(-log_likelihoods(cloud, ids, 128), abs=1e-4)
    # a single token goes through other kernels, which round a quantised model's sums otherwise
    one_by_one = -log_likelihoods(cloud, ids, 1)
    assert scores[1:].sum() == pytest.approx(one_by_one.sum(), rel=0.01)
    assert np.corrcoef(scores[1:], one_by_one)[0, 1] > 0.995
    assert self_information(cloud, ids).tolist() == scores.tolist()  # whatever the context held before
    assert self_information(cloud, ids[: BATCH + 8]) == pytest.approx(scores[: BATCH + 8], abs=1e-4)
    assert self_information(cloud, ids[:1]).tolist() == [inf]
    assert self_information(model.smollm2_path(), ids) == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "ids must be from 1 to 256 tokens, the model's context, got 0"),
        ([5] * 257, "ids must be from 1 to 256 tokens, the model's context, got 257"),
        ([5, 49152], "ids must be from 0 to 49151, got 49152"),
        ([-1], "ids must be from 0 to 49151, got -1"),
    ],
)
def test_ids_that_a_model_cannot_read_are_refused(cloud, ids, words):
    with pytest.raises(dc.InputError, match=words):
        self_information(cloud, ids)


def test_a_path_without_a_model_is_named(tmp_path):
    with pytest.raises(dc.InputError, match="self_information: model_path must be a GGUF file"):
        self_information(tmp_path / "none.gguf", [1, 2])


@pytest.mark.parametrize("rho", [0.0, 1.5, -1.0, float("nan"), [0.5, 0.0]])
def test_a_share_that_is_none_is_named(rho):
    with pytest.raises(dc.InputError, match=r"^rho must lie in \(0, 1\]"):
        kept_tokens(100, rho)
