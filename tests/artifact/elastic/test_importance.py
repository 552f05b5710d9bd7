"""What a layer and a unit add, against the model without them and against each contribution written out."""

from dataclasses import replace

import numpy as np
import pytest

from artifact.elastic import importance
from artifact.elastic.forward import Packed, after_block, attended, load, losses, neurons, norm, residuals
from tests.helpers import tiny

TEXTS = [np.random.default_rng(k).integers(0, tiny.WORDS, size).tolist() for k, size in enumerate((9, 1, 17))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.tiny_model(tmp_path_factory.mktemp("tiny") / "model.gguf"))


@pytest.fixture(scope="module")
def packed(model):
    return Packed(TEXTS, model.head_size, model.rope_base)


def loss(model, packed):
    *_, last = residuals(model, packed)
    return losses(model, last, packed).mean()


def test_the_cost_of_a_layer_is_the_loss_of_the_model_without_it(model, packed):
    grown = importance.by_removal(model, packed)
    for layer, cost in enumerate(grown):
        without = replace(model, blocks=[block for k, block in enumerate(model.blocks) if k != layer])
        assert cost == pytest.approx(loss(without, packed) - loss(model, packed), abs=1e-5)


def test_anchors_are_the_layers_that_cost_most_in_their_order():
    assert importance.anchors(np.array([0.1, 5.0, 0.3, 0.2, 7.0]), 3) == [1, 2, 4]
    assert importance.anchors(np.array([1.0, 1.0, 1.0]), 2) == [0, 1]  # of equal ones the first


def test_texts_that_are_packed_do_not_see_each_other(model, packed):
    *_, together = residuals(model, packed)
    for text, span in zip(TEXTS, packed.spans, strict=True):
        *_, alone = residuals(model, Packed([text], model.head_size, model.rope_base))
        assert np.abs(together[span] - alone).max() < 1e-5


def test_losses_are_those_of_the_softmax(model, packed):
    *_, last = residuals(model, packed)
    logits = (norm(last, model.output_norm, model.epsilon) @ model.embedding.T).astype(float)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = [-np.log(chance[span.start + k, id]) for text, span in zip(TEXTS, packed.spans, strict=True)
              for k, id in enumerate(text[1:])]  # fmt: skip
    assert losses(model, last, packed) == pytest.approx(wanted, abs=1e-5)


def test_a_level_has_the_first_units_of_every_layer_but_the_anchors(model):
    level = importance.cut(model, 2, 64, [1])
    shapes = [(len(block.attn_k), len(block.attn_q), block.ffn_down.shape[1]) for block in level.blocks]
    heads = tiny.HEADS // tiny.GROUPS * tiny.HEAD_SIZE
    cut, whole = (2 * tiny.HEAD_SIZE, 2 * heads, 64), (3 * tiny.HEAD_SIZE, 3 * heads, tiny.NEURONS)
    assert shapes == [cut, whole, cut]


def test_a_level_of_all_units_is_the_model(model, packed):
    level = importance.cut(model, tiny.GROUPS, tiny.NEURONS, [])
    assert loss(level, packed) == pytest.approx(loss(model, packed))


@pytest.fixture(scope="module")
def contributions(model, packed):
    """Of each layer what each group (K, N, D) and neuron (F, N, D) adds to each row, and the stream before it."""
    found, x = [], model.embedding[packed.ids]
    for block in model.blocks:
        heads = attended(model, block, norm(x, block.attn_norm, model.epsilon), packed)
        size = heads.shape[1] // tiny.GROUPS
        spans = [slice(k * size, (k + 1) * size) for k in range(tiny.GROUPS)]
        groups = np.stack([heads[:, span] @ block.attn_output[:, span].T for span in spans])
        before, x = x, x + groups.sum(0)
        active = neurons(block, norm(x, block.ffn_norm, model.epsilon))
        added = np.einsum("nf,df->fnd", active, block.ffn_down)
        found.append((groups, before, added, x))
        x = x + added.sum(0)
    assert np.abs(x - after_block(model, model.blocks[-1], before, packed)).max() < 1e-4
    return found


def test_units_are_in_the_order_of_what_they_add(model, packed, contributions):
    """By the root mean square, over rows, of what a unit adds in relation to the stream it is added to."""

    def ranked(added, stream):
        relative = np.linalg.norm(added, axis=2) / np.sqrt(np.mean(stream**2, axis=1))
        return np.argsort(-np.sqrt(np.mean(relative**2, axis=1)), kind="stable")

    found = importance.order(model, packed)
    for layer, (groups, before, added, stream) in enumerate(contributions):
        assert found.groups[layer].tolist() == ranked(groups, before).tolist()
        assert found.neurons[layer].tolist() == ranked(added, stream).tolist()


def test_the_first_tokens_of_a_text_do_not_outweigh_the_others(model, packed):
    """A row of the stream a thousand times the others' size changes no order, since the next norm divides by it."""
    x = np.ones((3, tiny.WIDTH), np.float32) * np.array([[1], [1000], [1]], np.float32)
    assert (importance.row_weights(x) * x).ravel() == pytest.approx(1)
