"""Measuring levels: what a token costs in nats, what the reference is used for, and what goes on without texts."""

import json
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from artifact.data import model, parse
from artifact.elastic.cut import Shape
from artifact.errors import ArtifactError, TraceError
from artifact.measure import elastic, elastic_memory, elastic_scores
from artifact.measure.elastic_scores import ORDERED, STORED, Methods, Question
from disco_core.errors import InputError
from disco_core.systems.elastic import Level
from tests.helpers.measuring import a_run
from tests.helpers.tiny import WORDS, tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def lost(path, known, ids):
    """Nats of ids after others, evaluated from an empty state with all logits."""
    with closing(model.load(path, n_ctx=64, logits_all=True)) as llama:
        llama.eval(known + ids)
        rows = llama.scores[len(known) - 1 : len(known) + len(ids) - 1].copy()
    return [np.log(np.exp(row.astype(float)).sum()) - row[id] for row, id in zip(rows, ids, strict=True)]


def test_options_that_share_the_state_of_their_question_score_as_if_each_stood_alone(tiny):
    question = Question(0, [3, 1, 4, 1, 5], [[9, 2, 6], [5], [3, 5, 8, 9]], 1)
    with elastic_scores.scored(tiny) as llama:
        found = list(elastic_scores.option_nats(llama, question))
    for option, nats in zip(question.options, found, strict=True):
        np.testing.assert_allclose(nats, lost(tiny, question.text, option), atol=1e-4)


def test_what_a_question_has_in_common_with_the_one_before_is_evaluated_once(tiny):
    before, question = (
        Question(0, [3, 1, 4, 1, 5], [[9, 2], [6]], 0),
        Question(1, [3, 1, 4, 8], [[7, 5], [2, 2, 2]], 0),
    )
    with elastic_scores.scored(tiny) as llama:
        list(elastic_scores.option_nats(llama, before))
        found = list(elastic_scores.option_nats(llama, question, same=3))
    for option, nats in zip(question.options, found, strict=True):
        np.testing.assert_allclose(nats, lost(tiny, question.text, option), atol=1e-4)


def test_answers_and_choices_are_numbers_alone(tiny, tmp_path):
    methods = Methods(tmp_path, {100: Level(1.0, tiny)}, {}, [], None)
    rng = np.random.default_rng(0)
    asked = [Question(k, rng.integers(WORDS, size=4).tolist(), [[1, 2], [3]], k % 2) for k in range(6)]
    rows = pd.DataFrame(elastic_scores._accuracy(methods, 100, ORDERED, asked))
    assert (rows.right == (rows.chosen == rows.question % 2)).all()
    assert (rows.chosen_nats <= rows.right_nats).all()
    assert rows.chosen_nats[rows.right == 1].equals(rows.right_nats[rows.right == 1])
    found = elastic_scores._perplexity(methods, 100, ORDERED, [([1, 2, 3], [4, 5])])
    assert found["perplexity"][0]["nats"] == pytest.approx(sum(lost(tiny, [1, 2, 3], [4, 5])), abs=1e-3)
    assert found["recovery"] == []


def test_the_ways_to_make_a_level_are_named_and_counted():
    levels = {100: Level(1.0, None), 81: Level(0.81, None), 40: Level(0.4, None)}
    settings = SimpleNamespace(ranks=[8, 16])
    methods = Methods(None, levels, {}, [], settings)
    assert methods.of(100) == [STORED, ORDERED]
    assert methods.of(40) == ["as stored", "in order, no anchors", "in order", "rank 8", "full"]
    assert methods.of(81) == [*methods.of(40), "rank 16", "rank 8, towards the stream", "full, towards the stream"]
    assert [methods.asked(percent) for percent in levels] == [
        [STORED],
        [STORED, ORDERED, "rank 8", "full"],
        [ORDERED],
    ]
    pieces = sum(len(methods.of(percent)) + 3 * len(methods.asked(percent)) for percent in levels)
    assert elastic_scores.pieces(len(levels), 2) == pieces
    assert elastic_scores.nearest([100, 90, 79, 40]) == 79


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"percents": [100]}, "percents must be different whole numbers from 1 to 99, got .100"),
        ({"percents": []}, r"got \[\]"),
        ({"percents": 80}, "percents must be different whole numbers from 1 to 99, got 80"),
        ({"percents": [80, 80]}, r"different whole numbers from 1 to 99, got \[80, 80\]"),
        ({"ranks": [8, 8]}, r"ranks must be different whole numbers from 1 to 99, got \[8, 8\]"),
        ({"decode_tokens": 1}, "decode_tokens must be at least 2"),
        ({"repeats": 0}, "repeats"),
        ({"lengths": [9000]}, "tokens of context"),
        ({"evaluate": 1}, "evaluate"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, changed, told):
    with pytest.raises(InputError, match=told) as caught:
        elastic.measure(a_run(tmp_path, "elastic", **changed))
    assert "\n" not in str(caught.value)


def test_without_the_public_texts_evaluation_says_so_in_one_line(monkeypatch):
    def missing(source):
        raise TraceError("http://127.0.0.1:9/: no complete response")

    monkeypatch.setattr(parse, "load", missing)
    told = elastic_scores.missing()
    assert told.startswith("not evaluated, since the public texts are not there: http")
    assert "\n" not in told


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A committed reference with two levels and the anchors 0, 1 and 5."""
    monkeypatch.setattr(elastic, "REFERENCE", tmp_path)
    pd.DataFrame({"layer": range(6), "removal": 1.0, "anchor": [1, 1, 0, 0, 0, 1]}).to_csv(tmp_path / "layers.csv")
    rows = [(100, 1.0, 3, 1536), (81, 0.8072, 3, 1056), (40, 0.397, 1, 256)]
    table = pd.DataFrame(rows, columns=["percent", "share", "groups", "neurons"])
    table.to_csv(tmp_path / "levels.csv")
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    return tmp_path


def test_anchors_and_shapes_are_the_reference_s_unless_they_are_to_be_found(reference):
    settings = SimpleNamespace(percents=[80, 40], evaluate=False)
    shares, options = elastic._known(settings)
    assert shares == [0.8072, 0.397]
    assert options["anchors"] == [0, 1, 5]
    assert options["shapes"][81] == Shape(3, 1056)
    settings.percents = [60]
    assert elastic._known(settings) == ([0.6], {"anchors": [0, 1, 5]})
    settings.evaluate = True
    assert elastic._known(settings) == ([0.6], {})
    assert elastic.tables(False) == ["prompts", "measured/elastic/layers", "measured/elastic/levels"]
    (reference / "levels.csv").write_text("")
    settings.evaluate = False
    with pytest.raises(ArtifactError, match="is not the reference it was"):
        elastic._known(settings)


def test_a_process_that_fails_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match=r"the process for the memory of '100' failed: .*levels\.json") as caught:
        elastic_memory.bytes_of(tmp_path, "100", 64)
    assert "\n" not in str(caught.value)
