"""What a smaller size of a model costs and buys: likelihood, accuracy, latency, switching and memory by level."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.measure import elastic_memory
from artifact.measure.elastic import ON_DEMAND, RESIDENT
from artifact.measure.elastic_scores import ALIKE, FULL, ORDERED, STORED, STREAM, nearest, rank
from artifact.measure.store import Measured

WHOLE = 100
WITHIN = 0.15  # of TPOT ~ h + (1 - h) m
COLOURS = {
    STORED: "#949494",
    ALIKE: "#d55e00",
    ORDERED: "#0173b2",
    rank(8): "#029e73",
    rank(16): "#56b4e9",
    rank(32): "#de8f05",
    FULL: "#6a3d9a",
}
HEADERS = {  # what a reader sees in place of a column's name
    "percent": "level (%)",
    "groups": "groups of heads",
    "neurons": "neurons of each layer",
    "mb": "file (MB)",
    "ttft_ms": "TTFT (ms)",
    "tpot_ms": "TPOT (ms)",
    "explained": "R² on the texts of the regression",
    "held_out": "R² on held-out texts",
    "closed": "loss closed (%)",
    "closed_low": "from",
    "closed_high": "to",
    "load_ms": "load (ms)",
    "later_ms": "first token later by (ms)",
    "share": "of the smallest level's TTFT (%)",
}
MISSING = "measured without evaluation, which `make elastic` adds"


def evaluated(measured: Measured) -> bool:
    """Whether a measurement has perplexity and accuracy, which need public texts and up to an hour."""
    return not measured["perplexity"].empty


def perplexity(measured: Measured, replicates: int, seed: int) -> pd.DataFrame:
    """Of each level and method: nats per token, perplexity with its 95 % band (bootstrap over answers), and `closed`,
    the part (%) of the level's loss in log-perplexity, in order, that the method makes up for, with its band.
    """
    rows = measured["perplexity"]
    nats, tokens = (
        rows.pivot(index="answer", columns=["percent", "method"], values=name).astype(float)
        for name in ("nats", "tokens")
    )
    weights = _weights(len(nats), replicates, seed)
    logs = pd.DataFrame(weights @ nats.to_numpy() / (weights @ tokens.to_numpy()), columns=nats.columns)
    out = []
    for percent, method in logs:
        one, ordered, whole = logs[percent, method], logs[percent, ORDERED], logs[WHOLE, STORED]
        row = {"percent": percent, "method": method, "nats": one[0]}
        row |= _band("perplexity", np.exp(one.to_numpy()))
        closed = 100 * (ordered - one) / (ordered - whole) if percent != WHOLE else one * np.nan
        out.append(row | _band("closed", closed.to_numpy()))
    return pd.DataFrame(out)


def better(table: pd.DataFrame) -> pd.DataFrame:
    """Of each level below 100 %, from a table of `perplexity`: whether order and anchors each lower it."""
    wide = table[table.percent < WHOLE].pivot(index="percent", columns="method", values="nats")
    return pd.DataFrame({"order": wide[ORDERED] < wide[STORED], "anchors": wide[ORDERED] < wide[ALIKE]}).sort_index(
        ascending=False
    )


def recovery(measured: Measured, table: pd.DataFrame) -> pd.DataFrame:
    """At the level nearest 80 %, for each rank and target of the regression: R² averaged over layers, on the texts of
    the regression and on others, perplexity, and the part of the loss that it closes, with its band.
    """
    percent = nearest(table.percent.unique().tolist())
    rows = measured["recovery"].astype({"rank": str})
    means = rows[rows.percent == percent].groupby(["rank", "towards"], sort=False)[["explained", "held_out"]].mean()
    means = means.reset_index()
    names = means["rank"].where(means["rank"] == FULL, "rank " + means["rank"])
    means["method"] = names + np.where(means.towards == "stream", STREAM, "")
    scores = table[table.percent == percent].drop(columns=["percent", "nats"])
    shown = ["rank", "towards", "explained", "held_out", "perplexity", "closed", "closed_low", "closed_high"]
    return means.merge(scores, on="method")[shown].sort_values(["towards", "held_out"], ignore_index=True)


def accuracy(measured: Measured, replicates: int, seed: int) -> pd.DataFrame:
    """Of each task, level and method: accuracy (%) with its 95 % band (bootstrap over questions), chance (%), and
    `above`, whether the whole model's band is above chance, without which the task tells nothing.
    """
    out = []
    for task, rows in measured["accuracy"].groupby("task", sort=False):
        right = rows.pivot(index="question", columns=["percent", "method"], values="right").astype(float)
        drawn = 100 * _weights(len(right), replicates, seed) @ right.to_numpy() / len(right)
        chance = 100 * (1 / rows.groupby("question").options.first()).mean()
        above = np.quantile(drawn[:, right.columns.get_loc((WHOLE, STORED))], 0.025) > chance
        for k, (percent, method) in enumerate(right):
            row = {"task": task, "percent": percent, "method": method} | _band("accuracy", drawn[:, k])
            out.append(row | {"chance": chance, "above": bool(above), "questions": len(right)})
    return pd.DataFrame(out)


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """The methods in which every level was made; each has a line, whose end is the whole model."""
    whole = table[(table.percent == WHOLE) & (table.method == STORED)]
    below = table[table.percent < WHOLE]
    levels = below.groupby("method").percent.transform("nunique")
    below = below[levels == below.percent.nunique()]
    ends = [whole.assign(method=method) for method in below.method.unique()]
    return pd.concat([below, *ends], ignore_index=True)


def head_share(measured: Measured) -> float:
    """h: the part of the bytes that the whole model reads for each token that its head has, which no level cuts."""
    whole = measured["levels"].set_index("percent").loc[WHOLE]
    return float(whole.head_bytes / (whole.head_bytes + whole.block_bytes))


def grown(measured: Measured) -> float:
    """By which part of its bytes the whole model's file grows when its units are put in order."""
    whole = measured["levels"].set_index("percent").loc[WHOLE]
    return float(whole.bytes / whole.stored_bytes - 1)


def latency(measured: Measured) -> pd.DataFrame:
    """Of each level and prompt length: median TTFT and TPOT, both relative to the whole model, m (the share of block
    weights), the expected TPOT h + (1 - h) m, and by how much the measured one is off it.
    """
    rows, h = measured["latency"], head_share(measured)
    keys = ["percent", "prompt_tokens"]
    medians = rows[rows.order == ORDERED].groupby(keys)[["ttft_s", "tpot_s"]].median()
    medians[["ttft", "tpot"]] = medians / medians.xs(WHOLE).reindex(medians.index, level="prompt_tokens")
    table = medians.reset_index().merge(measured["levels"][["percent", "share"]], on="percent")
    table = table.rename(columns={"share": "m"}).assign(expected=lambda t: h + (1 - h) * t.m)
    return table.assign(off=table.tpot / table.expected - 1, ttft_off=table.ttft / table.m - 1)


def fixed_share(table: pd.DataFrame) -> float:
    """The part of the whole model's TPOT that a line through the measured ones has at m = 0."""
    slope, fixed = np.polyfit(table.m, table.tpot, 1)
    return float(fixed / (fixed + slope))


def switching(measured: Measured) -> pd.DataFrame:
    """Of each pair of levels: how it was switched, how much later than without a switch the first token came (median,
    s), in percent of the smallest level's TTFT for that prompt, and the seconds that loading took.
    """
    rows, trials = measured["switching"], measured["latency"]
    smallest = trials[(trials.percent == trials.percent.min()) & (trials.prompt_tokens == trials.prompt_tokens.min())]
    medians = rows.groupby(["how", "from", "to"], sort=False)[["ttft_s", "load_s"]].median().reset_index()
    same = rows[rows["from"] == rows["to"]].groupby(["how", "to"]).ttft_s.median().rename("same_s")
    pairs = medians[medians["from"] != medians["to"]].merge(same.reset_index(), on=["how", "to"])
    pairs["later_s"] = pairs.ttft_s - pairs.same_s
    return pairs.assign(share=100 * pairs.later_s / smallest.ttft_s.median())


def switched(pairs: pd.DataFrame) -> pd.DataFrame:
    """From a table of `switching`: medians over pairs of levels, in memory and on demand, a delay below 0 as 0."""
    medians = pairs.groupby("how", sort=False)[["later_s", "share", "load_s"]].median().clip(lower=0)
    table = medians.reindex([RESIDENT, ON_DEMAND]).reset_index()
    return table.assign(later_ms=1e3 * table.later_s, load_ms=1e3 * table.load_s)[
        ["how", "later_ms", "share", "load_ms"]
    ]


def memory(measured: Measured) -> pd.DataFrame:
    """What processes have in memory: what, mb beyond a process without a model, and times that of the whole model."""
    used = measured["memory"].astype({"what": str}).set_index("what").bytes
    used = (used - used[elastic_memory.NO_MODEL]).drop(elastic_memory.NO_MODEL)
    names = {str(WHOLE): "the whole model in order"}
    times = used / used[elastic_memory.AS_STORED]
    return pd.DataFrame({"what": used.rename(names).index, "mb": (used / 1e6).to_numpy(), "times": times.to_numpy()})


def times_memory(table: pd.DataFrame) -> float:
    """Memory with all levels over that of the whole model as stored."""
    return float(table.set_index("what").times[elastic_memory.RESIDENT])


def levels(measured: Measured, table: pd.DataFrame) -> pd.DataFrame:
    """The levels, from a table of `latency`: what each keeps, its file, and its times for the shortest prompt."""
    short = table[table.prompt_tokens == table.prompt_tokens.min()].set_index("percent")
    rows = measured["levels"].set_index("percent").join(short[["ttft_s", "tpot_s"]])
    answers = measured["answers"].set_index("percent").text
    return rows.assign(
        mb=rows.bytes / 1e6, ttft_ms=1e3 * rows.ttft_s, tpot_ms=1e3 * rows.tpot_s, answer=answers
    ).reset_index()[["percent", "groups", "neurons", "mb", "ttft_ms", "tpot_ms", "answer"]]


def look(table: pd.DataFrame, column: str = "method") -> Mapping[str, Any]:
    """Hue and palette for seaborn, of the methods that a table has."""
    names = [name for name in COLOURS if name in set(table[column])]
    return {"hue": column, "hue_order": names, "palette": {name: COLOURS[name] for name in names}}


def _weights(n: int, replicates: int, seed: int) -> NDArray[np.float64]:
    """How often each of n rows counts: once in the first line, as drawn with replacement in the others."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    return np.vstack([np.ones(n), drawn]).astype(float)


def _band(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The first value, and the middle 95 % of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
