"""The figures of dispatch that compare policies: the distribution of TTFT, and the cuts of all pairs."""

from collections.abc import Iterable, Mapping

import pandas as pd
import seaborn as sns
from seaborn.axisgrid import FacetGrid

from artifact.analysis import bands, bootstrap
from artifact.publish import figures, grids

GREY = "0.4"


def distribution(quantiles: pd.DataFrame, policies: Iterable[str]) -> FacetGrid:
    """The share of requests over TTFT for each policy, a panel for each constrained endpoint; dotted: P99.

    quantiles   policy, constrained, level, ttft_s
    """
    axes = {"x": "ttft_s", "y": "level", "col": "constrained", "hue": "policy", "style": "policy"}
    look = figures.look(policies)
    grid = grids.draw(sns.relplot, quantiles, kind="line", estimator=None, sort=False, **axes, **look)
    grid.set(xscale="log", xticks=[0.3, 1, 3, 10], xticklabels=["0.3", "1", "3", "10"], ylim=(0, 1.01))
    grid.refline(y=0.99, color=GREY, lw=0.6, ls=":")
    size, titles = (figures.PAGE_IN, 2.6), "{col_name} constrained"
    grids.lay_out(grid, size, x="TTFT (s), logarithmic", y="share of requests", titles=titles)
    return grid


def cuts(
    tables: Mapping[str, pd.DataFrame],
    paper: pd.DataFrame,
    ranges: Mapping[str, tuple[float, float]],
    services: Iterable[str],
) -> FacetGrid:
    """DiSCo's cuts of all pairs: a column of panels for each statistic, a row for each constrained endpoint.

    tables   of `budgets.cut_table`, by statistic
    paper    cuts of P99 of single pairs that the paper lists: service, device, constrained, paper
    ranges   that the paper states, in percent, by statistic
    services in the order in which their pairs are drawn
    """
    readings = {"stoch_cut": "against Stoch", "stoch_plus_cut": "against Stoch+"}
    long = [bootstrap.long_form(table, readings, into="cut").assign(statistic=key) for key, table in tables.items()]
    listed = paper.rename(columns={"paper": "value"})[["service", "device", "constrained", "value"]]
    listed = listed.assign(cut="paper's value, this pair", statistic="P99")
    place = {name: k for k, name in enumerate(services)}
    rows = pd.concat([*long, listed]).sort_values("service", key=lambda column: column.map(place), kind="stable")
    rows = rows.reset_index(drop=True)
    rows["pair"] = rows["service"] + ", " + rows["device"].str.split(" + ", regex=False).str[1]
    looks = 3 if len(paper) else 2
    grid = grids.draw(
        sns.catplot,
        bands.observations(rows, "value", "low", "high"),
        kind="point",
        x="value",
        y="pair",
        row="constrained",
        col="statistic",
        hue="cut",
        dodge=0.4,
        linestyle="none",
        markers=["o", "^", "D"][:looks],
        palette=[*map(figures.colour, ("Stoch", "Stoch+")), "black"][:looks],
        markersize=3,
        err_kws={"lw": 1},
        **bands.KNOWN,
    )
    for (_, statistic), panel in grid.axes_dict.items():
        panel.axvspan(*ranges[statistic], color="0.92", lw=0, zorder=0)
    grid.refline(x=0, color=GREY, lw=0.6, ls="-")
    titles = "{col_name} TTFT, {row_name} constrained"
    grids.lay_out(grid, (figures.PAGE_IN, 5), x="cut of TTFT (%)", y="", titles=titles)
    return grid
