"""Refinement of a prompt: the least informative tokens are left out, and the protected ones stay."""

from contextlib import closing

import pytest

from artifact.data import model
from disco_core.systems.compression import kept_tokens, protected_spans
from disco_core.systems.pd_device.refine import refine

MARKS = model.TEMPLATE.split("{prompt}")
BODY = "The lighthouse keeper counted 17 ships. None of them came into the harbour, since the tide was low."
QUESTION = " How many ships did he count?"
PIECES = [(MARKS[0], True), (BODY, False), (QUESTION, True), (MARKS[1], True)]


@pytest.mark.slow
def test_a_refined_prompt_is_the_prompt_without_what_says_least():
    vocabulary = model.tokenizer()
    ids, protected = protected_spans(PIECES, vocabulary)
    assert refine(PIECES, vocabulary, 1) == ids.tolist()  # a vocabulary will do: nothing has to be scored
    with closing(model.load(n_ctx=256, n_batch=128, n_threads=1, n_threads_batch=1)) as cloud:
        for rho in (0.7, 0.5):
            found = refine(PIECES, cloud, rho)
            assert len(found) == max(kept_tokens(ids.size, rho), protected.sum())
            left = iter(ids.tolist())
            assert all(id in left for id in found)  # in order
            text = vocabulary.detokenize(found, special=True).decode(errors="replace")
            assert text.startswith(MARKS[0])
            assert text.endswith(QUESTION + MARKS[1])
        assert refine(PIECES, cloud, 0.01) == ids[protected].tolist()
