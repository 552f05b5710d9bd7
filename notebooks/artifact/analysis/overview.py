"""The results in short: every claim as a table, and six exhibits of other notebooks drawn again on one page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact.errors import ArtifactError
from artifact.publish import claims, figures
from artifact.publish.claims_table import Line
from artifact.publish.verdict_files import Verdict

STEMS = (
    "dispatch_device_constrained",
    "dispatch_tail",
    "migration_cost",
    "live_ttft",
    "pd_device_lengths",
    "pd_device_live",
)
TAIL_PERCENT = 11, 52  # D1
SAVED_PERCENT = {"device": 72.7, "server": 83.6}  # D5, D5a
CARRIED_TIMES = 15  # P3
_BLUES = {"device": "#0173b2", "server": "#56b4e9"}  # DiSCo's, where the device or the server is constrained
_PAPER: dict[str, Any] = {"color": "#404040", "linestyle": ":", "linewidth": 1}
_WHISKER = {"color": "#404040", "linewidth": 1}
Exhibits = dict[str, pd.DataFrame]


def read(folder: Path) -> Exhibits:
    """The tables of the exhibits in STEMS; ArtifactError where one is missing."""
    paths = {stem: folder / f"{stem}.csv" for stem in STEMS}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise ArtifactError(f"{folder.name} has no {', '.join(missing)}; run `make figures`")
    return {stem: pd.read_csv(path) for stem, path in paths.items()}


def described(exhibits: Exhibits) -> pd.DataFrame:
    """Count, mean, standard deviation and quantiles of every column of numbers of these exhibits."""
    parts = {stem: table.describe().T.reset_index(names="column") for stem, table in exhibits.items()}
    return pd.concat(parts, names=["exhibit"]).reset_index(level=0)


def claims_of(lines: Sequence[Line]) -> pd.DataFrame:
    """Every claim in words: id, the paper it is of, mark, the paper's value, ours, place, verdict, exhibit."""
    columns = {"paper of": "source", "claim": "statement", "against Stoch+": "favourable", "verdict": "shown"}
    names = ("id", "paper of", "mark", "claim", "paper", "ours", "against Stoch+", "place", "verdict", "exhibit")
    return pd.DataFrame({name: [getattr(one, columns.get(name, name)) for one in lines] for name in names})


def values_of(verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    """The papers' claims that a number decides and that were tested: bounds, tolerance, ours, place, verdict."""
    rows = []
    for claim in claims.load().values():
        verdict = verdicts[claim.id]
        if verdict["ours"] and claim.source != "ours" and math.isfinite(claim.low):
            bounds = {"kind": claim.kind, "low": claim.low, "high": claim.high, "tolerance": claim.tolerance}
            ours = verdict["ours"]["median"]
            result = {"ours": ours, "place": claim.place(ours), "verdict": verdict["verdict"]}
            rows.append({"id": claim.id} | bounds | result)
    return pd.DataFrame(rows)


def draw(exhibits: Exhibits) -> Figure:
    """The page: dispatch in the first row, migration and live streams in the second, P/D-Device in the third."""
    fig, axes = plt.subplots(3, 2, figsize=(figures.PAGE_IN, 7.8))
    panels = (_budgets, _tails, _savings, _live, _carried, _cloud)
    for panel, stem, at in zip(panels, STEMS, axes.flat, strict=True):
        panel(exhibits[stem], at)
    return fig


def _budgets(table: pd.DataFrame, axes: Axes) -> None:
    first = table.iloc[0]
    one = table[(table["service"] == first["service"]) & (table["device"] == first["device"])]
    bounds = pd.DataFrame({"b": [one["b"].min(), one["b"].max()]})
    constant = one[one["b"].isna()].drop(columns="b").merge(bounds, how="cross")  # policies without a budget
    every = pd.concat([constant, one.dropna(subset="b")])
    look = figures.look(list(one["policy"].unique()))
    sns.lineplot(every, x="b", y="mean_s", hue="policy", style="policy", errorbar=None, ax=axes, **look)
    axes.set(title="Dispatch: TTFT with a constrained device", xlabel="budget b", ylabel="mean TTFT (s)")
    axes.set_ylim(0, None)
    axes.legend(title=None, ncols=2, loc="lower left")


def _tails(table: pd.DataFrame, axes: Axes) -> None:
    low, high = TAIL_PERCENT
    axes.axvspan(low, high, color="#eeeeee", zorder=0, label=f"paper: {low} to {high} %")
    look: dict[str, Any] = {"hue": "constrained", "palette": _BLUES, "dodge": True, "jitter": False, "size": 4.5}
    sns.stripplot(table, x="stoch_cut", y="service", ax=axes, **look)
    axes.set(title="Dispatch: tail against Stoch, by service", xlabel="P99 TTFT lower than Stoch's by (%)", ylabel="")
    axes.set(xlim=(0, 80), ylim=(len(table["service"].unique()) + 0.9, -0.6))  # room for the legend
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles, [name if "paper" in name else f"{name} constrained" for name in names], loc="lower left")


def _savings(table: pd.DataFrame, axes: Axes) -> None:
    names = {"max": "largest", "median": "median"}
    by_budget = table.groupby(["constrained", "b"])["saving"].agg(list(names)).rename(columns=names).reset_index()
    long = by_budget.melt(["constrained", "b"], var_name="services and phones", value_name="saving")
    look: dict[str, Any] = {"hue": "constrained", "style": "services and phones", "palette": _BLUES}
    sns.lineplot(long, x="b", y="saving", ax=axes, **look)
    for percent, at in zip(SAVED_PERCENT.values(), ("right", "left"), strict=True):  # where no line is near
        axes.axhline(percent, **_PAPER)
        look = {"va": "top", "ha": "right"} if at == "right" else {"va": "bottom", "ha": "left"}
        axes.annotate(f"paper: {percent} %", (0.92 if at == "right" else 0.08, percent), **look)
    axes.set(title="Migration: cost saved", xlabel="budget b", ylabel="cost saved (%)", ylim=(0, 100))
    sns.move_legend(axes, "lower right", ncols=2)


def _live(table: pd.DataFrame, axes: Axes) -> None:
    last = table[table["setting"] == table["setting"].iloc[-1]]
    # the three values of a policy are its band and, in the middle, its mean: drawn as their range and their median
    bands = last.melt("policy", ["mean_s_low", "mean_s", "mean_s_high"], value_name="ttft_s")
    palette = {policy: figures.colour(policy) for policy in last["policy"]}
    look: dict[str, Any] = {"hue": "policy", "palette": palette, "saturation": 1, "legend": False}
    look |= {"estimator": "median", "errorbar": ("pi", 100), "err_kws": _WHISKER}
    sns.barplot(bands, x="ttft_s", y="policy", ax=axes, **look)
    setting = {"last hop": "emulated network delay", "raw": "no network delay"}.get(str(last["setting"].iloc[0]), "")
    axes.set(title=f"Live: two endpoints, {setting}".rstrip(", "), xlabel="mean TTFT (s), 95 % band", ylabel="")


def _carried(table: pd.DataFrame, axes: Axes) -> None:
    cooperative = table[table["system"] == "P/D-Device"]
    look: dict[str, Any] = {"hue": "device", "style": "device", "estimator": "median", "errorbar": None}
    sns.lineplot(cooperative, x="prompt_tokens", y="times", ax=axes, **look)
    axes.axhline(CARRIED_TIMES, **_PAPER)
    axes.annotate(f"paper: up to {CARRIED_TIMES}", (9500, CARRIED_TIMES * 1.05), ha="right", va="bottom")
    axes.set(title="P/D-Device: median over services", xscale="log", yscale="log")
    axes.set(xlabel="prompt length (tokens)", ylabel="answers per cloud slot,\ntimes those of cloud only")
    ticks = [1, 2, 5, 10, 20, 50]
    axes.set(xticks=[100, 1000, 10000], xticklabels=["100", "1,000", "10,000"], yticks=ticks, yticklabels=ticks)
    axes.set_ylim(0.8, 300)  # room for the legend
    axes.legend(title=None, loc="upper right")


def _cloud(table: pd.DataFrame, axes: Axes) -> None:
    palette = {policy: figures.colour(policy) for policy in table["policy"]}
    sns.barplot(table, x="cloud_s", y="policy", hue="policy", palette=palette, saturation=1, legend=False, ax=axes)
    for at, row in enumerate(table.itertuples()):
        axes.annotate(f" TTFT {row.ttft_s:.2f} s", (row.cloud_s, at), va="center")
    axes.set(title="P/D-Device: live", xlabel="seconds that a cloud slot is held", ylabel="")
    axes.set_xlim(0, 1.35 * table["cloud_s"].max())
