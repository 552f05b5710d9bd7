"""Corrections in closed form, against the minimum of the same loss that a solver or a search finds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.elastic import importance, recovery
from artifact.elastic.cut import Shape
from artifact.elastic.forward import Packed, load, residuals
from tests.helpers import tiny

SHAPE, ANCHORED = Shape(2, 64), [0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.tiny_model(tmp_path_factory.mktemp("tiny") / "model.gguf"))


@pytest.fixture(scope="module")
def packed(model):
    rng = np.random.default_rng(3)
    return Packed([rng.integers(0, tiny.WORDS, 40).tolist() for _ in range(12)], model.head_size, model.rope_base)


def regression(seed, rows=60, inputs=7, outputs=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    y = x @ rng.normal(size=(inputs, outputs)) + rng.normal(size=(rows, outputs))
    weights = rng.uniform(0.5, 2, (rows, 1)).astype(np.float32)
    held = np.arange(rows) % 6 == 0
    return x, (y * [1, 10, 0.1, 1, 1]).astype(np.float32), weights, held


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), ridge=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_full_correction_is_the_least_squares_solution(seed, ridge):
    """Of the rows and, for the ridge, of one more row for each input that draws its coefficient to zero."""
    x, y, weights, held = regression(seed)
    found = recovery._regressed(x, y, weights, held, None, ridge)
    some, wanted = (x * weights)[~held].astype(float), (y * weights)[~held].astype(float)
    moments = np.sum(some**2, axis=0)
    drawn = np.diag(np.sqrt(ridge * moments + 1e-6 * moments.mean()))
    more = np.vstack([some, drawn]), np.vstack([wanted, np.zeros((x.shape[1], y.shape[1]))])
    assert found.b @ found.a == pytest.approx(np.linalg.lstsq(*more, rcond=None)[0].T, rel=2e-3, abs=2e-3)


def best_by_search(x, y, rank, rng):
    """The least loss of a correction of a rank that alternating least squares reaches from several beginnings."""
    least = np.inf
    for _ in range(4):
        b = rng.normal(size=(rank, y.shape[1]))
        for _ in range(200):
            a = np.linalg.lstsq(x, y @ np.linalg.pinv(b), rcond=None)[0]
            b = np.linalg.lstsq(x @ a, y, rcond=None)[0]
        least = min(least, float(np.sum((y - x @ a @ b) ** 2)))
    return least


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 4))
def test_no_other_correction_of_its_rank_is_better(seed, rank):
    x, y, weights, held = regression(seed)
    found = recovery._regressed(x, y, weights, held, rank, 0.0)
    assert found.a.shape == (rank, x.shape[1])
    assert found.b.shape == (y.shape[1], rank)
    some, wanted = (x * weights)[~held].astype(float), (y * weights)[~held].astype(float)
    spread = wanted.std(0)
    left = float(np.sum(((wanted - some @ (found.b @ found.a).T) / spread) ** 2))
    assert left == pytest.approx(best_by_search(some, wanted / spread, rank, np.random.default_rng(seed)), rel=1e-3)


def test_what_is_explained_is_on_the_texts_of_the_regression_and_on_others():
    x, y, weights, held = regression(1)
    found = recovery._regressed(x, y, weights, held, None, 0.0)
    for share, part in zip(found.explained, (~held, held), strict=True):
        left = ((y - x @ (found.b @ found.a).T) * weights)[part]
        assert share == pytest.approx(1 - np.sum(left**2) / np.sum((y * weights)[part] ** 2), abs=1e-5)
    noise = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
    assert recovery._regressed(x, noise, weights, held, None, 0.0).explained[1] < 0.1  # nothing to be learnt


def test_anchors_stay_and_other_layers_are_corrected_on_the_level_s_own_activations(model, packed):
    level, found = recovery.recover(model, packed, SHAPE, ANCHORED, rank=2)
    assert [layer is None for layer in found] == [True, False, False]
    assert level.blocks[0] is model.blocks[0]
    cut = importance.cut(model, *SHAPE, ANCHORED)
    for block, plain, layer in zip(level.blocks[1:], cut.blocks[1:], found[1:], strict=True):
        assert block.ffn_down == pytest.approx(plain.ffn_down + layer.b @ layer.a)
        assert np.array_equal(block.ffn_up, plain.ffn_up)
    # a layer's correction does not depend on what comes after it
    _, again = recovery.recover(replace(model, blocks=model.blocks[:2]), packed, SHAPE, ANCHORED, rank=2)
    assert again[1].a == pytest.approx(found[1].a)


def test_what_is_predicted_is_what_the_cut_neurons_would_have_added(model, packed):
    """With no ridge and as many neurons as rows are independent, a layer says what it would have said uncut."""
    one = replace(model, blocks=model.blocks[:1])
    few = Packed(
        [packed.ids[:40].tolist()] * 2, model.head_size, model.rope_base
    )  # the same text, so that none is new
    shape = Shape(tiny.GROUPS, 64)  # 64 neurons are more than the 40 rows
    level, _ = recovery.recover(one, few, shape, [], rank=None, ridge=0.0)
    *_, whole = residuals(one, few)
    *_, mended = residuals(level, few)
    *_, plain = residuals(importance.cut(one, *shape, []), few)
    assert np.abs(mended - whole).max() < 0.02 * np.abs(plain - whole).max()


@pytest.mark.parametrize("towards", ["layer", "stream"])
def test_a_correction_brings_the_level_nearer_to_the_whole_model(model, packed, towards):
    *_, whole = residuals(model, packed)

    def off(level):
        *_, last = residuals(level, packed)
        return float(np.mean((last - whole) ** 2))

    plain = off(importance.cut(model, *SHAPE, ANCHORED))
    by_rank = [
        off(recovery.recover(model, packed, SHAPE, ANCHORED, rank=k, towards=towards)[0]) for k in (2, 16, None)
    ]
    assert plain > by_rank[0] > by_rank[1] > by_rank[2]


def test_the_heads_that_are_cut_are_made_up_for_too(model, packed):
    """What they would have added is part of the target: with all neurons, it is all of it."""
    shape = Shape(1, tiny.NEURONS)
    level, found = recovery.recover(model, packed, shape, [1, 2], rank=None)
    assert found[0].explained[0] > 0.2
    *_, whole = residuals(model, packed)
    *_, mended = residuals(level, packed)
    *_, plain = residuals(importance.cut(model, *shape, [1, 2]), packed)
    assert np.mean((mended - whole) ** 2) < np.mean((plain - whole) ** 2)
