"""Grids of panels drawn by seaborn, laid out for a page: exact size, legend above the panels, names of the axes.

grid = grids.draw(sns.relplot, table, kind="line", x="b", y="value", col="service", hue="policy")
grids.lay_out(grid, (figures.PAGE_IN, 2), x="budget", y="mean TTFT (s)")
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from seaborn.axisgrid import FacetGrid

from artifact.analysis import bands
from artifact.publish import figures
from disco_core.errors import InputError

BUDGET = "budget b: share of all prompt tokens that the constrained endpoint may prefill"


def draw(plot: Callable[..., FacetGrid], data: pd.DataFrame, **given: Any) -> FacetGrid:
    """The grid that seaborn's `relplot`, `catplot` or `displot` draws; more may be drawn into it before `lay_out`."""
    with mpl.rc_context({"figure.constrained_layout.use": False}):  # while seaborn draws, it lays out by itself
        return plot(data, **given)


def lay_out(
    grid: FacetGrid,
    size: tuple[float, float],
    *,
    x: str,
    y: str | Sequence[str],
    titles: str = "{col_name}",
    legend_columns: int = 6,
) -> None:
    """Give a grid its final size, the names of its axes, and the legend above the panels.

    size     width and height in inches
    x, y     names of the axes; `y` may be one name for each row of panels
    titles   of the panels, with seaborn's {col_name} and {row_name}
    """
    if grid.legend is not None:
        sns.move_legend(grid, "outside upper center", ncols=legend_columns, title=None)
    grid.set_titles(titles)
    for panels in grid.axes[1:] if "{row_name}" not in titles else []:  # a column is named once
        for panel in panels:
            panel.set_title("")
    rows = [y] * len(grid.axes) if isinstance(y, str) else y
    for panels, name in zip(grid.axes, rows, strict=True):
        panels[0].set_ylabel(name)
    grid.set_xlabels("")
    grid.figure.set_size_inches(*size)
    grid.figure.set_layout_engine("constrained")
    grid.figure.supxlabel(x, fontsize=mpl.rcParams["axes.labelsize"])


def over_budgets(
    table: pd.DataFrame,
    policies: Sequence[str],
    *,
    row: str,
    y: str | Sequence[str],
    height: float = 3.6,
    titles: str = "{col_name}",
    sharey: bool | str = False,
) -> FacetGrid:
    """A page-wide figure of a line and a band for each policy over the budget b, a column for each service.

    table    service, policy, b, `row`, and value with its band low, high; b is NaN for a policy without a budget,
             which is drawn as a flat line
    row      the column that the rows of panels are of; y, titles as in `lay_out`

    InputError for a policy without rows.
    """
    if missing := sorted(set(policies) - set(table["policy"])):
        raise InputError(f"there are no rows of the policy {', '.join(missing)}")
    flat, spent = table[table["b"].isna()], table[table["b"].notna()]
    ends = [flat.assign(b=b) for b in (spent["b"].min(), spent["b"].max())]
    rows = bands.observations(pd.concat([spent, *ends], ignore_index=True), "value", "low", "high")
    grid = draw(
        sns.relplot,
        rows,
        kind="line",
        x="b",
        y="value",
        row=row,
        col="service",
        hue="policy",
        style="policy",
        facet_kws={"sharey": sharey},
        err_kws={"alpha": 0.2, "lw": 0},
        **bands.KNOWN,
        **figures.look(policies),
    )
    grid.set(xticks=sorted(spent["b"].unique())[::2])
    lay_out(grid, (figures.PAGE_IN, height), x=BUDGET, y=y, titles=titles)
    return grid
