"""The two figures of a pair's study, each with the numbers that it shows."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from artifact.analysis.panels import panels
from artifact.pair.splits import DISCO, FLOOR, OPTIMAL, POLICIES
from artifact.pair.study import Study
from artifact.publish import figures, grids

SHOWN = 1000  # requests drawn as points at most
MEASURES = {"mean_s": "mean TTFT (s)", "p99_s": "P99 TTFT (s)"}


def latency(study: Study) -> tuple[Figure, pd.DataFrame]:
    """TTFT of both endpoints: as distributions, and against the length of the prompt."""
    lengths, device = study.length, study.pair.device
    rows = np.random.default_rng(0).permutation(lengths.size)[:SHOWN]
    parts = {"server": study.ttft_s[rows], "device": device.ttft(lengths[rows])}
    points = pd.concat(
        [pd.DataFrame({"endpoint": name, "prompt_tokens": lengths[rows], "ttft_s": v}) for name, v in parts.items()]
    )
    trials = study.pair.trials.assign(endpoint="device, trials")
    colours = {"server": figures.colour("server only"), "device": figures.colour("device only")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(figures.PAGE_IN, 2.6))
    for (name, values), dashes in zip(parts.items(), ("-", (0, (4, 1))), strict=True):
        sns.ecdfplot(x=values, ax=left, color=colours[name], linestyle=dashes, label=name)
    left.set(xlabel="TTFT (s)", ylabel="share of requests", xscale="log")
    _readable(left.xaxis)
    left.legend(loc="lower right")
    right.plot(lengths[rows], parts["server"], ".", ms=3, alpha=0.5, color=colours["server"], label="server")
    ends = np.array([lengths.min(), lengths.max()])
    right.plot(ends, device.ttft(ends), "--", color=colours["device"], label="device")
    right.plot(trials["prompt_tokens"], trials["ttft_s"], "x", ms=4, color=colours["device"])
    right.set(xlabel="prompt (tokens)", ylabel="TTFT (s)", yscale="log")
    _readable(right.yaxis)
    right.legend()
    return figure, pd.concat([points, trials[points.columns]], ignore_index=True)


def budgets(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Mean and P99 TTFT of every policy over budgets, with bands for DiSCo and the optimal plan."""
    table = study.policies
    order = [*POLICIES, FLOOR]
    long = panels(table[["b", "policy", *MEASURES]], MEASURES)
    for end in ("low", "high"):
        named = {f"{value}_{end}": label for value, label in MEASURES.items()}
        long[end] = panels(table[["b", "policy", *named]], named)["value"]
    kinds = {"kind": "line", "hue": "policy", "style": "policy", "facet_kws": {"sharey": False}}
    grid = grids.draw(sns.relplot, long, x="b", y="value", col="measure", **kinds, **figures.look(order))
    for label, axes in grid.axes_dict.items():
        for policy in (DISCO, OPTIMAL):
            one = long[(long["measure"] == label) & (long["policy"] == policy)]
            axes.fill_between(one["b"], one["low"], one["high"], color=figures.colour(policy), alpha=0.15, lw=0)
        axes.set_ylim(0, None)
    grids.lay_out(grid, (figures.PAGE_IN, 3.0), x=grids.BUDGET, y="TTFT (s)", legend_columns=5)
    return grid.figure, long


def _readable(axis: Any) -> None:
    """Labels of a logarithmic axis as plain numbers, at 1, 2 and 5 of each power of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
