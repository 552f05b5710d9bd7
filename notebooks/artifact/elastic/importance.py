"""Which units and layers of a model matter: what each adds to the answer on calibration text, without gradients.

A neuron adds its activation times its column of the down-projection, a key-value group of heads what the output
matrix makes of it. Rows count in relation to the residual stream that they are added to, since the next norm divides
by it: the first tokens of a text, where attention rests, would outweigh all others by a thousand to one.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from artifact.elastic.cut import Order
from artifact.elastic.forward import Array, Model, Packed, after_block, attended, losses, neurons, norm, residuals

ANCHORS = 6  # in every model that the paper's authors released


def order(model: Model, packed: Packed) -> Order:
    """The units of each layer from the most important on, by root mean square of what each adds."""
    by_neuron, by_group = [], []
    x = model.embedding[packed.ids]
    for block in model.blocks:
        heads = attended(model, block, norm(x, block.attn_norm, model.epsilon), packed)
        by_group.append(np.argsort(-_groups(model, x, heads, block.attn_output, len(block.attn_k)), kind="stable"))
        x = x + heads @ block.attn_output.T
        active = neurons(block, norm(x, block.ffn_norm, model.epsilon))
        scale = np.sqrt(np.mean((active * row_weights(x)) ** 2, axis=0))
        by_neuron.append(np.argsort(-scale * np.linalg.norm(block.ffn_down, axis=0), kind="stable"))
        x = x + active @ block.ffn_down.T
    return Order(np.stack(by_neuron), np.stack(by_group))


def _groups(model: Model, x: Array, heads: Array, output: Array, rows_of_keys: int) -> NDArray[np.float64]:
    groups = rows_of_keys // model.head_size
    parts = zip(np.split(heads, groups, axis=1), np.split(output, groups, axis=1), strict=True)
    return np.array([np.sqrt(np.mean((part @ matrix.T * row_weights(x)) ** 2)) for part, matrix in parts])


def row_weights(x: Array) -> Array:
    """One over the root mean square of each row of the residual stream, shape (N, 1)."""
    weights: Array = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    return weights


def by_removal(model: Model, packed: Packed) -> NDArray[np.float64]:
    """Nats per token that the loss grows by when a layer is left out, for each layer."""
    streams = list(residuals(model, packed))
    whole = losses(model, streams[-1], packed).mean()
    grown = np.empty(len(model.blocks))
    for layer in range(len(model.blocks)):
        x = streams[layer]  # as it is before the layer that is left out
        for block in model.blocks[layer + 1 :]:
            x = after_block(model, block, x, packed)
        grown[layer] = losses(model, x, packed).mean() - whole
    return grown


def anchors(grown: NDArray[np.float64], count: int = ANCHORS) -> list[int]:
    """The layers whose removal costs most, in their order in the model."""
    return sorted(np.argsort(-grown, kind="stable")[:count].tolist())


def cut(model: Model, groups: int, kept: int, anchored: Sequence[int]) -> Model:
    """A level of an ordered model as arrays: the first groups of heads and neurons of every layer but the anchors."""
    level, rows = copy(model), groups * model.head_size
    level.blocks = [
        block if layer in anchored else block.first(rows, kept) for layer, block in enumerate(model.blocks)
    ]
    return level
