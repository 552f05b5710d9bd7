"""What became of streams under faults, by the kind of fault, and what was charged."""

import pandas as pd

from artifact.measure.store import Measured

OUTCOMES = {  # in the order of the figure, with their colours
    "complete, from one endpoint": "#56b4e9",
    "complete, migrated": "#0173b2",
    "complete, after a failure": "#029e73",
    "ended with an error": "#d55e00",
    "reader left": "#949494",
}
HEADERS = {  # what a reader sees in place of a column's name
    "kind": "fault",
    "exact": "server charge exact",
    "uncounted": "tokens not charged",
    "failovers": "hand-overs after a failure",
    "errors": "ended with an error",
    "unconfirmed": "cancels not confirmed",
    "estimated": "prefill estimated",
    "broken": "promises broken",
}


def streams(measured: Measured) -> pd.DataFrame:
    """Every stream, with its kind and its outcome as ordered categories."""
    table = measured["streams"]
    kinds = pd.Categorical(table.kind, list(dict.fromkeys(table.kind)), ordered=True)
    return table.assign(kind=kinds, outcome=pd.Categorical(table.outcome, list(OUTCOMES), ordered=True))


def by_fault(table: pd.DataFrame) -> pd.DataFrame:
    """One row a kind of fault, and one for all: counts of streams, of tokens for `uncounted`."""
    told = table.assign(
        hit=table.struck > 0,
        complete=table.outcome.str.startswith("complete"),
        errors=table.outcome == "ended with an error",
        exact=table.server_decode >= table.server_counted,  # without the tokens that end a turn
        uncounted=(table.server_counted - table.server_decode).clip(lower=0),
        unconfirmed=table.server_unconfirmed + table.device_unconfirmed,
        broken=table.broken > 0,
    )
    sums = ["hit", "migrations", "recalls", "failovers", "complete", "errors"]
    sums += ["exact", "uncounted", "unconfirmed", "estimated", "broken"]
    counted = {"streams": ("stream", "size")} | {name: (name, "sum") for name in sums}
    rows = told.groupby("kind", observed=True).agg(**counted).reset_index()
    total = told.assign(kind="all").groupby("kind").agg(**counted).reset_index()
    return pd.concat([rows.astype({"kind": str}), total], ignore_index=True)
