"""Bootstrap intervals: the value on a trace itself, and the middle 95 % of the values on replicates of the trace."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def intervals(runs: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """The values of replicate 0, the trace itself, with the 2.5 % and 97.5 % quantiles of the other replicates.

    runs    one row for each combination of `keys` and each `replicate`
    Returns one row for each combination of keys: keys, values and, with replicates, <value>_low and <value>_high,
    NaN for a combination that no replicate has.
    """
    shown = runs[runs["replicate"] == 0].set_index(list(keys))[list(values)]
    others = runs[runs["replicate"] > 0]
    if len(others):
        groups = others.groupby(list(keys), dropna=False, sort=False)[list(values)]
        shown = shown.join(groups.quantile(0.025).add_suffix("_low")).join(groups.quantile(0.975).add_suffix("_high"))
    return shown.reset_index()


def long_form(table: pd.DataFrame, names: Mapping[str, str], into: str) -> pd.DataFrame:
    """A table of `intervals` with one row for each value, as seaborn draws it.

    names   what each value column is called in the column `into`
    Returns the other columns, `into`, and value, low, high; low and high are NaN without replicates.
    """
    others = [f"{name}{side}" for name in names for side in ("", "_low", "_high")]
    keys = table.drop(columns=others, errors="ignore")
    return pd.concat(
        [
            keys.assign(
                **{into: shown},
                value=table[name],
                low=table.get(f"{name}_low", np.nan),
                high=table.get(f"{name}_high", np.nan),
            )
            for name, shown in names.items()
        ],
        ignore_index=True,
    )


def as_text(table: pd.DataFrame, value: str, digits: int = 1) -> pd.Series:
    """A value and its interval as a table shows them: "52.4 (48.0 to 57.0)", without replicates "52.4"."""
    shown = table.filter(regex=f"^{value}(_low|_high)?$").map(f"{{:.{digits}f}}".format)
    if f"{value}_low" not in shown:
        return shown[value]
    return shown[value] + " (" + shown[f"{value}_low"] + " to " + shown[f"{value}_high"] + ")"
