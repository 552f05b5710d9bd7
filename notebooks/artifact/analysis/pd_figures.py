"""The figures of P/D-Device: over prompt lengths, the cheapest system, one live answer."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.analysis.panels import panels
from artifact.analysis.pd_device import FAST, SYSTEMS
from artifact.analysis.pd_live import EVENTS, events
from artifact.publish import figures, grids

PAPER_TIMES = 15  # answers that a cloud slot carries at best, times cloud only, as the paper says
SLOW = "Pixel 7 Pro + BLOOM-1.1B"
MEASURES = {"ttft_s": "TTFT (s)", "tpot_max_s": "largest gap (s)", "times": "answers per slot\n(times cloud only)"}
LENGTH = "prompt length (tokens)"


def over_lengths(rows: pd.DataFrame, tpot_limit_s: float) -> Figure:
    """TTFT, largest gap and answers per slot of the slowest and the fastest device, medians over services."""
    grid = grids.draw(
        sns.relplot,
        panels(rows[rows.device.isin([SLOW, FAST])], MEASURES),
        kind="line",
        x="prompt_tokens",
        y="value",
        row="measure",
        col="device",
        hue="system",
        style="system",
        estimator="median",
        errorbar=None,
        facet_kws={"sharey": "row"},
        mew=0,
        **figures.look(SYSTEMS, marker=True),
    )
    grid.set(xscale="log")
    for ttft, gap, times in grid.axes.T:
        ttft.set_yscale("log"), times.set_yscale("log")
        gap.set_ylim(0, 1.2 * tpot_limit_s)
        for panel, level, text in ((gap, tpot_limit_s, "limit s"), (times, PAPER_TIMES, "paper: up to 15")):
            panel.axhline(level, color="black", lw=0.6)
            at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
            panel.annotate(text, (1, level), (0, 2), **at)
    grids.lay_out(grid, (figures.PAGE_IN, 4.8), x=LENGTH, y=list(MEASURES.values()))
    figure: Figure = grid.figure
    return figure


def cheapest(choice: pd.DataFrame) -> Figure:
    """The cheapest system by prompt and answer length, a panel for each price ratio; blank where there is none."""
    shown = choice[choice.best != "none"]
    look = figures.look(sorted(set(shown.best)), marker=True)
    del look["dashes"]
    grid = grids.draw(
        sns.relplot,
        shown,
        x="prompt_tokens",
        y="output_tokens",
        col="price_ratio",
        hue="best",
        style="best",
        s=45,
        linewidth=0,
        **look,
    )
    grid.set(xscale="log", yscale="log")
    titles = "device token at {col_name} of the cloud's price"
    grids.lay_out(grid, (figures.PAGE_IN, 2.7), x=LENGTH, y="answer length (tokens)", titles=titles)
    figure: Figure = grid.figure
    return figure


def timeline(tokens: pd.DataFrame) -> Figure:
    """One answer: when each token was generated and released, the device's prefill, and the take-over."""
    colours = map(figures.colour, ("cloud only", "device only", "P/D-Device"))
    grid = grids.draw(
        sns.relplot,
        events(tokens),
        x="seconds",
        y="token",
        hue="event",
        style="event",
        palette=dict(zip(EVENTS, colours, strict=True)),
        s=16,
        linewidth=0,
    )
    taken_s = tokens[tokens.source == "device"].generated_s.min()
    if np.isfinite(taken_s):
        grid.ax.axvspan(0, taken_s, ymax=0.08, color=figures.colour("device only"), alpha=0.35, lw=0)
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        grid.ax.annotate("device prefills", (taken_s / 2, 0.02), (0, 0), ha="center", **at)
        grid.ax.axvline(taken_s, color="black", lw=0.6, ls=":")
        grid.ax.annotate("take-over", (taken_s, 0.02), (3, 0), **at)
    grid.set(xlim=(0, None))
    grids.lay_out(grid, (figures.PAGE_IN, 2.8), x="time since the request (s)", y="token", titles="")
    figure: Figure = grid.figure
    return figure
