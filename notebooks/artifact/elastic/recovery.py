"""What makes up for the units that a level leaves out, in closed form: no gradients, no GPU hours.

Layer by layer, on the level's own activations, a ridge regression predicts from the kept neurons what the cut ones
would have added; the coefficients are added to the down-projection, in full or at a low rank. At rank r that is
reduced-rank regression: the coefficients are projected on the top r right singular vectors of the *fitted values*.
Rows count in relation to the residual stream, and each output dimension in relation to its spread.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from artifact.elastic.cut import Shape
from artifact.elastic.forward import Array, Block, Model, Packed, attended, neurons, norm, residuals
from artifact.elastic.importance import row_weights

HELD_OUT = 6  # one text of so many is left out of the regression, to see how well it predicts


@dataclass(frozen=True)
class Layer:
    """What a layer's regression found: factors b (D, r) and a (r, neurons) with `b a` to be added; R^2 on both parts.

    explained   share of what was cut that is predicted, on the texts of the regression and on those left out
    """

    a: Array
    b: Array
    explained: tuple[float, float]


def recover(
    model: Model,
    packed: Packed,
    shape: Shape,
    anchored: Sequence[int],
    *,
    rank: int | None,
    ridge: float = 1.0,
    towards: str = "layer",
) -> tuple[Model, list[Layer | None]]:
    """A level of an ordered model with its down-projections corrected, and each layer's correction.

    rank      of the corrections; None: full
    ridge     added to the diagonal of the second moments, in relation to it
    towards   "layer": what this layer's cut units would have added; "stream": the whole model's residual stream
    """
    level, found = copy(model), list[Layer | None]()
    level.blocks = []
    target = residuals(model, packed) if towards == "stream" else _nothing()
    next(target)
    held = np.zeros(len(packed.ids), np.bool_)
    for span in packed.spans[::HELD_OUT]:
        held[span] = True
    x, rows = model.embedding[packed.ids], shape.groups * model.head_size
    for index, block in enumerate(model.blocks):
        stream = next(target)
        kept = block if index in anchored else block.first(rows, shape.neurons)
        normed = norm(x, kept.attn_norm, model.epsilon)
        added = attended(model, kept, normed, packed) @ kept.attn_output.T
        missing: Array | float = 0.0  # what the heads that are cut would have added
        if len(kept.attn_k) < len(block.attn_k):
            missing = attended(model, block, normed, packed) @ block.attn_output.T - added
        x = x + added
        active = neurons(block, norm(x, block.ffn_norm, model.epsilon))
        correction = None
        if kept is not block:
            inputs = active[:, : shape.neurons]
            wanted = active[:, shape.neurons :] @ block.ffn_down[:, shape.neurons :].T + missing
            if stream is not None:
                wanted = stream - x - inputs @ kept.ffn_down.T
            correction = _regressed(inputs, wanted, row_weights(x), held, rank, ridge)
            kept = replace(kept, ffn_down=kept.ffn_down + correction.b @ correction.a)
            active = inputs
        level.blocks.append(kept)
        found.append(correction)
        x = x + active @ kept.ffn_down.T
    return level, found


def _nothing() -> Iterator[None]:
    while True:
        yield None


def _regressed(
    inputs: Array, wanted: Array, weights: Array, held: NDArray[np.bool_], rank: int | None, ridge: float
) -> Layer:
    x, y = (inputs * weights)[~held], (wanted * weights)[~held]
    moments = (x.T @ x).astype(np.float64)
    scale = np.diag(moments)
    moments += np.diag(ridge * scale + 1e-6 * scale.mean())
    coefficients = np.linalg.solve(moments, (x.T @ y).astype(np.float64))
    spread = y.std(0) + 1e-12
    fitted = (x @ coefficients.astype(np.float32)) / spread
    _, vectors = np.linalg.eigh((fitted.T @ fitted).astype(np.float64))
    top = vectors[:, -(rank or len(vectors)) :]
    a = (coefficients / spread @ top).T.astype(np.float32)
    b = (top * spread[:, None]).astype(np.float32)

    def explained(part: NDArray[np.bool_]) -> float:
        some, weight = wanted[part], weights[part]
        left = some - inputs[part] @ a.T @ b.T
        return 1 - float(np.sum((left * weight) ** 2) / np.sum((some * weight) ** 2))

    return Layer(a, b, (explained(~held), explained(held)))


def full(block: Block, correction: Layer) -> Array:
    """The down-projection with a full correction in it, shape (D, neurons)."""
    corrected: Array = block.ffn_down[:, : correction.a.shape[1]] + correction.b @ correction.a
    return corrected
