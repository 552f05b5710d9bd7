"""Tables and figures of the notebook `optimal`: policies side by side, the frontier, and plans on other requests."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from artifact.analysis.optimal import DISCO, FLOOR, OPTIMAL, PAIR, POLICIES, QUANTILE, way
from artifact.measure.optimal import IN_TIME, RANDOM
from artifact.measure.store import Measured
from artifact.publish import figures
from disco_core import checks
from disco_core.beyond.expectation import expected
from disco_core.beyond.length_dependence import LengthDependence
from disco_core.beyond.optimal import solve
from disco_core.cost import Constraint, End
from disco_core.dispatch import DispatchPlan, plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

BY_LENGTH = "optimal, F by length"


def side_by_side(runs: pd.DataFrame) -> pd.DataFrame:
    """Policies with the same budget, from rows of `OptimalStudy.run`; medians over pairs and budgets.

    Returns constrained, policy; mean and p99, in percent of DiSCo's; left, points of the budget that are not spent;
    way_mean and way_p99, of `way`, NaN for DiSCo and the clairvoyant scheduler.
    """
    disco = runs[runs["policy"] == DISCO].drop(columns=["policy", "used"])
    both = runs.merge(disco, on=[*PAIR, "b"], suffixes=("", "_disco"))
    both["mean"], both["p99"] = (100 * both[f"{one}_s"] / both[f"{one}_s_disco"] for one in ("mean", "p99"))
    both["left"] = (100 * (both["b"] - both["used"])).round(9)  # without what rounding leaves
    table = both.groupby(["constrained", "policy"])[["mean", "p99", "left"]].median()
    table = table.join(way(runs, "mean_s").rename("way_mean")).join(way(runs, "p99_s").rename("way_p99"))
    order = pd.MultiIndex.from_product([["device", "server"], [*POLICIES, FLOOR]], names=table.index.names)
    return table.reindex(order).reset_index()


def draw_frontier(found: pd.DataFrame) -> Figure:
    """P99 against mean TTFT of `OptimalStudy.frontier`: a panel for each service, a line and a point per budget."""
    services = found["service"].unique()
    fig, (axes,) = plt.subplots(1, len(services), figsize=(figures.PAGE_IN, 2.5), squeeze=False)
    for panel, service in zip(axes, services, strict=True):
        for k, (b, part) in enumerate(found[found["service"] == service].groupby("b")):
            line, rule = (part[part["policy"] == policy] for policy in (OPTIMAL, DISCO))
            panel.plot(
                line["mean_s"], line["p99_s"], marker=".", ms=3, **figures.series(k), label=f"optimal, b = {b:g}"
            )
            panel.plot(rule["mean_s"], rule["p99_s"], "o", color=figures.SERIES[k], ms=5, label=f"DiSCo-D, b = {b:g}")
        panel.set(title=service, ylim=(0, 1.08 * found["p99_s"][found["service"] == service].max()))
    axes[0].set_ylabel("P99 TTFT (s)")
    fig.supxlabel("mean TTFT (s)", fontsize=plt.rcParams["axes.labelsize"])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def cells(measured: Measured) -> pd.DataFrame:
    """The cells of `measure_optimal`, with group and n, of services whose halves have enough samples for a plan."""
    table = measured["cells"].merge(measured["services"][["service", "group", "n"]], on="service")
    return table[table.groupby("service")["fallback"].transform("max") == 0]


def by_service(table: pd.DataFrame, constraint: Constraint) -> pd.DataFrame:
    """What the optimal plan reaches with requests that it was not planned with, over phones and budgets.

    table   of `cells`
    Returns group, service, n, and of random halves: cut, cut_low, cut_high and known_cut, the medians and the middle
    half over the cells of P99's cut at equal share; reached, the sum of the cuts in percent of the sum of those by a
    plan that knows these requests, at equal share and mean, NaN without a cut; guarded_cut and guarded_reached, the
    same of the guarded plan; over_mean, over_mean_alike and cut_alike, medians; over_budget, in points, the mean;
    later_cut, the median of the earlier and the later half, NaN without times.
    """
    rows, here = [], table[table["constrained"] == constraint.value]
    for (group, service), part in here.groupby(["group", "service"], sort=False):
        one, later = part[part["split"] == RANDOM], part[part["split"] == IN_TIME]
        possible = one["known_cut_mean"].sum()
        found = {"group": group, "service": service, "n": int(one["n"].iloc[0]), "cut": one["cut"].median()}
        found |= {"cut_low": one["cut"].quantile(0.25), "cut_high": one["cut"].quantile(0.75)}
        found |= {"known_cut": one["known_cut"].median()}
        for name, cut in (("reached", "cut_mean"), ("guarded_reached", "guarded_cut_mean")):
            found[name] = 100 * one[cut].sum() / possible if possible > 0.1 * len(one) else np.nan
        found |= {name: one[name].median() for name in ("guarded_cut", "over_mean", "cut_alike", "over_mean_alike")}
        found |= {
            "over_budget": 100 * one["over_budget"].mean(),
            "disco_over_budget": 100 * one["disco_over_budget"].mean(),
        }
        rows.append(found | {"later_cut": later["cut"].median() if len(later) else np.nan})
    return pd.DataFrame(rows).sort_values(["group", "n"], ascending=[False, False], ignore_index=True)


def draw_services(table: pd.DataFrame) -> Figure:
    """The cut of P99 of each service in a table of `by_service`: reached, and with these requests known."""
    fig, axes = plt.subplots(figsize=(figures.PAGE_IN, 0.6 + 0.2 * len(table)))
    place, colour = np.arange(len(table))[::-1], figures.colour(OPTIMAL)
    axes.hlines(place, table["cut_low"], table["cut_high"], color=colour, lw=3, alpha=0.3)
    axes.plot(table["known_cut"], place, "o", mfc="none", color=colour, label="planned with these requests")
    axes.plot(table["cut"], place, "o", color=colour, label="planned with the other half")
    later = table["later_cut"].notna()
    axes.plot(table["later_cut"][later], place[later], "x", color="0.3", label="planned with the half before")
    axes.axvline(0, color="black", lw=0.8, ls=":")
    names = table["service"] + " (" + table["n"].astype(str) + ")"
    axes.set(yticks=place, yticklabels=names, xlabel="P99 TTFT below that of DiSCo-D at the same share (%)")
    border = place[table["group"] == table["group"].iloc[0]].min() - 0.5
    axes.axhline(border, color="0.6", lw=0.8)
    for group, side in zip(table["group"].unique(), (1, -1), strict=False):
        axes.annotate(
            group,
            (1, border + 0.1 * side),
            xycoords=axes.get_yaxis_transform(),
            ha="right",
            va="bottom" if side > 0 else "top",
        )
    axes.legend(loc="lower right")
    return fig


def by_length(pairs: pd.DataFrame, budgets: Iterable[float], halves: int, seed: int) -> pd.DataFrame:
    """Plans for a server whose TTFT grows with the prompt, made with one half of measured pairs, judged by the other.

    pairs   prompt_tokens, server_s, device_s of prompts that both endpoints answered
    Returns b, policy (DiSCo-D, the optimal plan with one F, and BY_LENGTH), and averaged over random halves used, the
    device's share of prompt tokens; mean_s and p99_s.
    """
    rng, rows = np.random.default_rng(seed), []
    device = DeviceProfile.fit(pairs["prompt_tokens"], pairs["device_s"], 1.0)  # its decode rate does not matter here
    everything = LengthDistribution.of(pairs["prompt_tokens"])
    for _ in range(checks.count(halves, "halves")):
        chosen = rng.permutation(len(pairs)) < len(pairs) // 2
        past, future = pairs[chosen], pairs[~chosen]
        dependence = LengthDependence.fit(past["prompt_tokens"], past["server_s"])
        one, each = TTFTDistribution(past["server_s"]), dependence.ttft(everything.tokens)
        prompts = LengthDistribution.of(future["prompt_tokens"])
        seen = {int(length): TTFTDistribution(part) for length, part in future.groupby("prompt_tokens")["server_s"]}
        for b in budgets:
            plans: dict[str, DispatchPlan] = {DISCO: plan_disco(Constraint.DEVICE, everything, one, b)}
            plans[OPTIMAL] = solve(everything, one, device, b, Constraint.DEVICE).plan
            plans[BY_LENGTH] = solve(everything, each, device, b, Constraint.DEVICE).plan
            for policy, plan in plans.items():
                found = expected(plan, prompts, seen, device)
                numbers = {
                    "used": found.shares[End.DEVICE],
                    "mean_s": found.mean_s,
                    "p99_s": found.quantile(QUANTILE),
                }
                rows.append({"b": b, "policy": policy} | numbers)
    return pd.DataFrame(rows).groupby(["b", "policy"], sort=False).mean().reset_index()


def said(table: pd.DataFrame) -> list[str]:
    """What a table of `by_service` says of each group of services, in lines."""
    lines = []
    for group, part in table.groupby("group", sort=False):
        worst, reached = part.loc[part["cut"].idxmin()], part["reached"]
        lines += [
            f"{group}, {len(part)} services:",
            "  of the cut of P99 by a plan that knows the requests, at the same share and mean: "
            f"{reached.median():.0f} % in the median, {reached.min():.0f} to {reached.max():.0f} %",
            f"  mean TTFT against DiSCo's rule at the same share: {part['over_mean'].median():+.2f} % in the median, "
            f"{part['over_mean'].max():+.2f} % at most",
            f"  share less b, averaged over splits: {part['over_budget'].mean() / 100:+.4f}, at most "
            f"{part['over_budget'].max() / 100:+.4f}; DiSCo's rule: {part['disco_over_budget'].mean() / 100:+.4f}",
            f"  the service whose P99 falls least: {worst['service']}, {-worst['cut']:+.1f} %",
        ]
    return lines
