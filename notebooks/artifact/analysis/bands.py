"""Values with bands that are known, in the form that seaborn draws.

Seaborn computes an interval from observations. Where a band is computed beforehand, as in a paired bootstrap, each
value becomes a few rows of which seaborn's median is the value, and whose range is the band.
"""

from typing import Any

import pandas as pd

KNOWN: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 100)}  # what seaborn is called with


def observations(table: pd.DataFrame, value: str, low: str, high: str) -> pd.DataFrame:
    """Five rows for each one: `value` holds the value three times, then both ends of its band. Draw with `KNOWN`.

    >>> observations(pd.DataFrame({"x": [2.0], "low": [1.0], "high": [4.0]}), "x", "low", "high").x.tolist()
    [2.0, 2.0, 2.0, 1.0, 4.0]
    """
    ends = [table.assign(**{value: table[column]}) for column in (low, high)]
    return pd.concat([table, table, table, *ends], ignore_index=True)
