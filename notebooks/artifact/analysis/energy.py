"""What a token asks of a device: FLOPs, by its model's architecture; energy, as measured; and what energy is worth.

A token is *read* (prefill) or *written* (decode). Symbols: lambda, what a joule is worth in $.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.data import traces
from disco_core import checks
from disco_core.checks import Floats

ANSWERS = (128, 256, 512)  # tokens of the answers that a row of phones.csv is the mean over


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer by its matrices; the columns of `data/architectures.csv`, described there."""

    layers: int
    hidden: int
    kv_width: int
    mlp: int
    mlp_matrices: int
    vocab: int

    @property
    def block_weights(self) -> int:
        """Weights of the blocks' matrices, each of which every token meets once."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width  # queries, output; keys, values
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab * self.hidden

    def flops(self, context: ArrayLike, *, written: bool) -> Floats:
        """FLOPs of a token that attends to `context` tokens, itself included; same shape as the context.

        `2 * block weights + 4 * layers * hidden * context`, and for a written token `2 * vocab * hidden`: a weight is
        a multiplication and an addition, attention is two products with the whole context.
        """
        seen = checks.seconds(context, "context", unit=" tokens")
        passed = self.block_weights + (self.head_weights if written else 0)
        found: Floats = 2.0 * passed + 4.0 * self.layers * self.hidden * seen
        return found


def architectures() -> dict[str, Architecture]:
    """The architectures of `data/architectures.csv`, by model."""
    table = traces.table("architectures").set_index("model").drop(columns=["parameters", "origin"])
    return {str(model): Architecture(**{name: int(n) for name, n in row.items()}) for model, row in table.iterrows()}


def phone_tokens(phones: pd.DataFrame) -> pd.DataFrame:
    """Every measured token of `phones.csv`: two rows for one, a token that is read and one that is written.

    Columns: device, engine, model, prompt_tokens, token (read, written), context (tokens it attends to, the mean over
    the prompt or the answers), gflop, weights (in billions, that have to come from memory for it: all for a written
    token; a prompt's tokens share them) and joule.
    """
    known, parts = architectures(), []
    for row in phones.itertuples():
        model, l = known[str(row.model)], int(row.prefill_tokens)
        about = {"device": row.device, "engine": row.engine, "model": row.model, "prompt_tokens": l}
        # the n-th token attends to n: the mean of 1 ... l, and of l + 1 ... l + N over the three N
        reads, writes = (l + 1) / 2, l + float(np.mean([(n + 1) / 2 for n in ANSWERS]))
        read = {"token": "read", "context": reads, "gflop": float(model.flops(reads, written=False)) / 1e9}
        read |= {"weights": model.block_weights / l / 1e9, "joule": row.prefill_mj_per_tok / 1e3}
        written = {"token": "written", "context": writes, "gflop": float(model.flops(writes, written=True)) / 1e9}
        written |= {"weights": (model.block_weights + model.head_weights) / 1e9, "joule": row.decode_mj_per_tok / 1e3}
        parts += [about | read, about | written]
    return pd.DataFrame(parts)


def scarce_rates(price_in: float, price_out: float, read_j: float, written_j: float) -> tuple[float, float]:
    """lambda below which the server is the scarce end, and above which the device is; neither is in between.

    Prices in $ per token, energy in J per token, lambda in $ per J: where `CostModel.constraint` changes its mind.
    """
    prices = [checks.number(price_in, "price_in"), checks.number(price_out, "price_out")]
    joules = [checks.positive(read_j, "read_j"), checks.positive(written_j, "written_j")]
    return min(prices) / max(joules), max(prices) / min(joules)
