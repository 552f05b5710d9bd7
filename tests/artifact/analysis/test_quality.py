"""What a hand-over does to the text: every measure against a plainer one."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.analysis import quality
from artifact.measure import quality as quality_session

few_words = st.lists(st.sampled_from(["sea", "salt", "is", "the", "of"]), max_size=12)


def grams(text, n):
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def plain_chrf(text, reference):
    """The F2 of precision and recall, averaged over the lengths of which both have n-grams, as Popović defines it."""
    text, reference, scores = "".join(text.split()), "".join(reference.split()), []
    for n in range(1, 7):
        own, other = grams(text, n), grams(reference, n)
        if own and other:
            same = (own & other).total()
            scores.append((same / own.total(), same / other.total()))
    if not scores:
        return 0.0
    precision, recall = np.mean(scores, axis=0)
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@given(few_words, few_words)
def test_chrf_is_what_it_is_defined_to_be(text, reference):
    text, reference = " ".join(text), " ".join(reference)
    assert quality.chrf(text, reference) == pytest.approx(plain_chrf(text, reference))


@given(few_words, few_words)
def test_what_repeats_at_the_hand_over_point_is_found_in_the_words_before(before, after):
    words, k = before + after, len(before)
    expected = False
    if before and after:
        expected = words[k] == words[k - 1]
        for first in range(max(0, k - 2), k + 1):
            gram = words[first : first + 3]
            earlier = " ".join(["", *words[: first + 2], ""])
            expected |= len(gram) == 3 and f" {' '.join(gram)} " in earlier
    assert quality.repeats(" ".join(before), "".join(f" {word}" for word in after)) == expected


def test_a_hand_over_point_within_a_word_is_no_repetition():
    assert not quality.repeats("The sea is salty: sa", "lt comes from rivers")
    assert quality.repeats("Salt, salt and sa", "lt, salt and more")
    assert not quality.repeats("", "Salt of the earth")
    assert not quality.repeats("Salt and salt", "")


def answers(rows):
    """Answers of two endpoints to some prompts, as a session gives them, from texts by (source, prompt, sample)."""
    return pd.DataFrame(rows, columns=quality_session.REQUESTS)


def told(source, target, moved, prompt, sample, before, after):
    return [source, target, moved, prompt, sample, 2, 9, before, after]


HERE = [
    told("device", "device", "alone", "p1", 0, "The sea", " is salt water"),
    told("device", "device", "alone", "p1", 1, "Salt is", " in the sea"),
    told("server", "server", "alone", "p1", 0, "Rivers bring", " it"),
    told("device", "server", "ids", "p1", 0, "The sea", " the sea is salt"),
    told("device", "device", "alone", "p2", 0, "Nine is", " odd"),
    told("device", "server", "ids", "p2", 0, "Nine is", " not even, it is odd"),
]


def test_a_migrated_answer_is_compared_with_the_same_unmigrated():
    nats = pd.DataFrame(
        [["device", "server", "ids", "p1", 0, 2, 2.5], ["device", "device", "alone", "p1", 0, 2, 2.0]]
    )
    nats.columns = quality_session.PERPLEXITY
    found = quality.compare(answers(HERE), nats)
    one, two = found[found.kind == "migrated"].to_dict("records")
    for column, text in (("chrF", " the sea is salt"), ("chrF_alone", " is salt water")):
        assert one[column] == pytest.approx(np.mean([plain_chrf(text, other) for other in (" in the sea", " it")]))
    assert (one["words"], one["words_alone"]) == (6, 5)
    assert (one["repeats"], one["repeats_alone"]) == (False, False)
    assert (one["nats"], one["nats_alone"]) == (2.5, 2.0)
    assert math.isnan(two["chrF"])  # no other sample of either endpoint to that prompt
    assert math.isnan(two["nats"])
    over = found[found.kind == quality.STARTS_OVER].to_dict("records")
    assert [row["words"] for row in over] == [5]  # the server's own "Rivers bring it", after "The sea"
    another = found[found.kind == quality.ANOTHER].set_index("prompt")
    assert another.words.to_dict() == {"p1": 7, "p2": 6}
    other = " not even, it is odd"
    assert another.chrF["p1"] == pytest.approx(np.mean([plain_chrf(other, one) for one in (" in the sea", " it")]))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_a_band_is_a_bootstrap_over_prompts(rows):
    table = pd.DataFrame(rows, columns=["prompt", "words", "words_alone"])
    prompts, draws = list("abcd"), quality.drawn_prompts(4, 20, 3)
    ratios = []
    for draw in draws:
        taken = [row for i in draw for row in rows if row[0] == prompts[i]]
        change, below = sum(own - alone for _, own, alone in taken), sum(alone for *_, alone in taken)
        ratios.append(100 * change / below if below else 0.0)
    value, low, high = quality.band(table, "length", draws, prompts)
    assert value == pytest.approx(100 * (table.words.sum() / table.words_alone.sum() - 1))
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_losses_are_positive_where_the_text_is_worse():
    row = {"prompt": "a", "chrF": 30.0, "chrF_alone": 35.0, "repeats": True, "repeats_alone": False}
    row |= {"words": 30, "words_alone": 40, "nats": 3.0, "nats_alone": 2.0}
    table, draws = pd.DataFrame([row]), np.zeros((3, 1), np.int64)
    found = {measure: quality.band(table, measure, draws, ["a"]) for measure in quality.MARGINS}
    assert found["chrF"] == (5.0, 5.0, 5.0)
    assert found["length"] == (-25.0,) * 3
    assert found["repetition"] == (100.0,) * 3
    assert found["perplexity"][0] == pytest.approx(100 * (math.e - 1))
    told = quality.losses(table, draws, ["a"]).set_index("measure")
    assert (told.loss == [found[measure][0] for measure in told.index]).all()
    assert told.worst["length"] == told.least["length"] == 25 / quality.MARGINS["length"]
    assert told.loc["chrF", ["unmigrated", "moved"]].tolist() == [35.0, 30.0]
    assert "perplexity" not in quality.losses(table.assign(nats=np.nan), draws, ["a"]).measure.tolist()
    unknown = quality.band(table.assign(nats=np.nan), "perplexity", draws, ["a"])
    assert all(map(math.isnan, unknown))
