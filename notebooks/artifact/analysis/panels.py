"""Tables in the long form of which seaborn draws one panel for each measure."""

from collections.abc import Mapping

import pandas as pd


def panels(table: pd.DataFrame, measures: Mapping[str, str]) -> pd.DataFrame:
    """One row for each row and measure: the other columns, `measure` (its label) and `value`.

    measures   column of the table: label with unit

    >>> panels(pd.DataFrame({"b": [0.1], "p99_s": [2.0]}), {"p99_s": "P99 TTFT (s)"}).to_dict("records")
    [{'b': 0.1, 'measure': 'P99 TTFT (s)', 'value': 2.0}]
    """
    others = [name for name in table if name not in measures]
    long = table.melt(others, list(measures), "measure", "value")
    return long.assign(measure=long["measure"].map(measures))
