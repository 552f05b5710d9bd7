"""What a token costs a device: FLOPs, by its model's architecture; energy, as measured; and the price of energy.

Tokens of a prompt (prefill) and of an answer (decode) are told apart. Symbols: lambda, the price of a joule in $.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.data import traces
from disco_core import checks
from disco_core.checks import Floats

ANSWERS = (128, 256, 512)  # lengths in tokens of the answers that a row of phones.csv averages over
NAMES = {  # of phones, engines and models in phones.csv, as one would print them
    "mate40pro": "Mate 40 Pro",
    "meizu21": "Meizu 21",
    "v30pro": "V30 Pro",
    "xiaomi15pro": "Xiaomi 15 Pro",
    "mnn": "MNN",
    "ours": "LLM-Profiler",
    "llama3_2-1b": "Llama 3.2 1B",
    "qwen2_5-1_5b": "Qwen2.5 1.5B",
}


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
        """Weights of the blocks' matrices; every token is multiplied by each of them once."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width  # queries, output; keys, values
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.vocab * self.hidden

    def flops(self, context: ArrayLike, *, decode: bool) -> Floats:
        """FLOPs of a token that attends to `context` tokens, itself included; same shape as the context.

        `2 * block weights + 4 * layers * hidden * context`, and for a decoded token `2 * vocab * hidden`: a weight is
        a multiplication and an addition, attention is two products with every token of the context.
        """
        attended = checks.seconds(context, "context", unit=" tokens")
        weights = self.block_weights + (self.head_weights if decode else 0)
        flops: Floats = 2.0 * weights + 4.0 * self.layers * self.hidden * attended
        return flops


def architectures() -> dict[str, Architecture]:
    """The architectures of `data/architectures.csv`, by model."""
    table = traces.table("architectures").set_index("model").drop(columns=["parameters", "origin"])
    return {str(model): Architecture(**{name: int(n) for name, n in row.items()}) for model, row in table.iterrows()}


def per_token(models: dict[str, Architecture], devices: pd.DataFrame, context: int) -> pd.DataFrame:
    """FLOPs of a token of each model, and what the paper's devices, whose speeds are in `devices`, reach per second.

    Headers are words with units; `phone` and the speeds are empty for a model that no device of the paper runs.
    """
    rows = []
    for name, model in models.items():
        prefill, decode = (float(model.flops(context, decode=of_answer)) / 1e9 for of_answer in (False, True))
        row = {"model": name, "blocks, M": model.block_weights / 1e6, "head, M": model.head_weights / 1e6}
        rows.append(row | {"prefill, GFLOP": prefill, "decode, GFLOP": decode, "decode / prefill": decode / prefill})
    table = pd.DataFrame(rows)
    speeds = devices.set_index("model").reindex(table["model"]).reset_index()
    table["phone"] = speeds["device"]
    table["prefill, GFLOP/s"] = table["prefill, GFLOP"] * speeds["prefill_tok_per_s"]
    table["decode, GFLOP/s"] = table["decode, GFLOP"] * speeds["decode_tok_per_s"]
    return table


def phone_tokens(phones: pd.DataFrame) -> pd.DataFrame:
    """Every measured token of `phones.csv`: each row gives two, one of the prompt and one of the answer.

    Columns: device, engine, model, prompt_tokens, token (prefill, decode), context (tokens it attends to, the mean
    over the prompt or the answers), gflop, joule, and weights (in billions, loaded from memory for it: all for a
    decoded token, while the tokens of a prompt share them).
    """
    models, tokens = architectures(), []
    for row in phones.itertuples():
        model, l = models[str(row.model)], int(row.prefill_tokens)
        about = {"device": row.device, "engine": row.engine, "model": row.model, "prompt_tokens": l}
        # the n-th token attends to n: the mean of 1 ... l, and of l + 1 ... l + N over the three N
        contexts = {"prefill": (l + 1) / 2, "decode": l + float(np.mean([(n + 1) / 2 for n in ANSWERS]))}
        weights = {
            "prefill": model.block_weights / l / 1e9,
            "decode": (model.block_weights + model.head_weights) / 1e9,
        }
        joules = {"prefill": row.prefill_mj_per_tok / 1e3, "decode": row.decode_mj_per_tok / 1e3}
        for token, context in contexts.items():
            gflop = float(model.flops(context, decode=token == "decode")) / 1e9
            one = {"token": token, "context": context, "gflop": gflop}
            tokens.append(about | one | {"weights": weights[token], "joule": joules[token]})
    return pd.DataFrame(tokens)


def explained(tokens: pd.DataFrame, *columns: str) -> float:
    """R² of the least-squares fit of `joule` on these columns of `phone_tokens`, with an intercept."""
    from sklearn.linear_model import LinearRegression

    x = tokens[list(columns)]
    return float(LinearRegression().fit(x, tokens["joule"]).score(x, tokens["joule"]))


def draw_line(data: pd.DataFrame, *, x: str, y: str, **_: Any) -> None:
    """Draw the least-squares line of y on x into the current panel: for `FacetGrid.map_dataframe`.

    Its coefficients have the six digits of a csv, since a solver's last bits differ from run to run.
    """
    slope, intercept = (float(f"{value:.6g}") for value in np.polyfit(data[x], data[y], 1))
    plt.gca().axline((0, intercept), slope=slope, color="#404040", ls="--", lw=0.8)


def fits(tokens: pd.DataFrame) -> pd.DataFrame:
    """How well FLOPs explain the energy of `phone_tokens`: one row for each phone and engine.

    Columns: phone, engine; R² of one line over all tokens (r2), over prefill and over decode alone, and of FLOPs with
    `weights` over all; the median energy of a FLOP in pJ, for prefill and for decode, and the ratio of the two.
    """
    rows = []
    for (device, engine), part in tokens.groupby(["device", "engine"], sort=False):
        by_kind = {kind: part[part["token"] == kind] for kind in ("prefill", "decode")}
        row = {"phone": device, "engine": engine, "r2": explained(part, "gflop")}
        row |= {f"r2_{kind}": explained(of_kind, "gflop") for kind, of_kind in by_kind.items()}
        row |= {"r2_with_weights": explained(part, "gflop", "weights")}
        per_flop = {kind: 1e3 * (of_kind["joule"] / of_kind["gflop"]).median() for kind, of_kind in by_kind.items()}
        row |= {f"pj_{kind}": picojoule for kind, picojoule in per_flop.items()}
        rows.append(row | {"ratio": per_flop["decode"] / per_flop["prefill"]})
    return pd.DataFrame(rows)


def constrained_rates(price_in: float, price_out: float, prefill_j: float, decode_j: float) -> tuple[float, float]:
    """lambda below which the server is the constrained endpoint, and above which the device is.

    Prices in $ per token, energy in J per token, lambda in $ per J: where `CostModel.constraint` changes. In between
    the prices overlap and neither endpoint is constrained.
    """
    prices = [checks.number(price_in, "price_in"), checks.number(price_out, "price_out")]
    joules = [checks.positive(prefill_j, "prefill_j"), checks.positive(decode_j, "decode_j")]
    return min(prices) / max(joules), max(prices) / min(joules)
