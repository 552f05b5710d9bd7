"""Answers that a model samples side by side are what it would sample one by one, each token anew from the start."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.elastic import make
from artifact.elastic.calibration import sample
from artifact.elastic.forward import load
from artifact.errors import ArtifactError
from tests.helpers import tiny
from tests.helpers.levels import numpy_logits

COLD, NEAR = 1e-4, 2e-3  # a temperature at which no token is drawn whose logit is further below the highest
STOP = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.tiny_model(tmp_path_factory.mktemp("tiny") / "model.gguf"))


def below_the_highest(model, prompt, text):
    """By how much the logit of each token of an answer is below the highest, from a forward pass over all of it."""
    logits = numpy_logits(model, text)[len(prompt) - 1 : -1]
    return logits.max(1) - logits[np.arange(len(logits)), text[len(prompt) :]]


@settings(max_examples=20)
@given(
    prompts=st.lists(st.lists(st.integers(0, tiny.WORDS - 1), min_size=1, max_size=6), min_size=1, max_size=6),
    more=st.integers(1, 10),
    stop=st.integers(0, tiny.WORDS - 1),
)
def test_without_chance_each_answer_is_the_most_likely_one(model, prompts, more, stop):
    tokens = max(map(len, prompts)) + more
    found = sample(model, prompts, tokens, stop, np.random.default_rng(0), COLD)
    for prompt, text in zip(prompts, found, strict=True):
        answer = text[len(prompt) :]
        assert text[: len(prompt)] == prompt
        assert below_the_highest(model, prompt, text).max() < NEAR
        assert stop not in answer[:-1]
        assert len(text) == tokens or answer[-1] == stop


def test_tokens_are_drawn_from_the_softmax(model):
    prompt, times, temperature = [3, 1, 4], 4000, 0.7
    found = sample(model, [prompt] * times, 4, STOP, np.random.default_rng(5), temperature)
    counts = np.bincount([text[-1] for text in found], minlength=tiny.WORDS)
    logits = numpy_logits(model, prompt)[-1].astype(float) / temperature
    chance = np.exp(logits - logits.max())
    chance /= chance.sum()
    often = chance * times > 5
    assert often.sum() > 5
    spread = (counts - chance * times)[often] / np.sqrt((chance * (1 - chance) * times)[often])
    assert np.abs(spread).max() < 4  # standard errors


def test_the_same_seed_gives_the_same_texts(model):
    once, again, other = (sample(model, [[1], [2, 3]], 12, STOP, np.random.default_rng(k)) for k in (1, 1, 2))
    assert once == again != other


@pytest.mark.parametrize("tokens", [3, 2])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_one_line(model, tokens):
    with pytest.raises(ArtifactError, match="the longest prompt has 3"):
        sample(model, [[1], [1, 2, 3]], tokens, STOP, np.random.default_rng(0))


def test_too_little_text_is_one_line(monkeypatch):
    monkeypatch.setattr(make.calibration, "sample", lambda *_: [[1, 2, 3]])
    with pytest.raises(ArtifactError, match="3 tokens of calibration text are too few"):
        make.calibration_texts(None, 100, 0)
