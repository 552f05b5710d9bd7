"""Hand-overs of live answers, as `measure_live` recorded them: by kind, what they saved, what was sent."""

from collections.abc import Callable

import pandas as pd

from artifact.analysis import scenario
from artifact.data import traces
from artifact.measure import answers
from artifact.measure.store import Measured
from disco_core.cost import Constraint, Ledger

OTHER = {"server": "device", "device": "server"}
SETTINGS = {"raw": "direct", "last hop": "emulated network"}  # of the server, as measured


def setting_name(setting: str) -> str:
    """A measured setting in words; "quiet" is that of the exact hand-overs, with no other request at the server."""
    return SETTINGS.get(setting, "direct, no other requests")


def by_kind(measured: Measured) -> pd.DataFrame:
    """Every answer that migrated, with its `kind` and its `source` endpoint.

    Those of the policies, and the `quiet` ones: one after the other at several reading rates, nothing else at work.
    """
    asked, quiet = measured["requests"], measured["seams"]
    went = asked[asked["migrated_at"] > 0]
    went = went.assign(kind=went["policy"] + ", " + went["setting"].replace(SETTINGS), source=went["winner"])
    pace = quiet["reading_rate"].map("{:.3g}/s".format)
    kind = quiet["source"] + " to " + quiet["source"].map(OTHER) + ", " + pace
    return pd.concat([went.assign(quiet=False), quiet.assign(kind=kind, quiet=True)], ignore_index=True)


def summary(rows: pd.DataFrame, service: traces.Service) -> pd.DataFrame:
    """One row for each kind of `by_kind`: answers, after how many tokens, how long, how late, percent saved."""
    columns = {
        "answers": ("tokens", "size"),
        "migrated_at": ("migrated_at", "mean"),
        "takeover_median_s": ("takeover_s", "median"),
        "takeover_longest_s": ("takeover_s", "max"),
        "delayed_mean": ("delay_num", "mean"),
        "delayed_most": ("delay_num", "max"),
        "tbt_p99_median_s": ("tbt_p99_s", "median"),
        "tbt_p99_mean_s": ("tbt_p99_s", "mean"),
    }
    kinds = rows.groupby("kind", sort=False)
    return kinds.agg(**columns).assign(saving=[saving(part, service) for _, part in kinds]).reset_index()


def saving(rows: pd.DataFrame, service: traces.Service) -> float:
    """Percent of the cost of answers that migrated from one endpoint, had its winner made every token.

    At the service's prices, with the source as the constrained endpoint, under which they migrated.
    """
    (source,) = rows["source"].unique()
    target = OTHER[source]
    prices = scenario.cost_model(service, Constraint(source))
    charged = rows[answers.CHARGES].astype(float)
    without = charged.copy()
    without[f"{target}_prefill"] -= rows["prompt_tokens"] + rows["migrated_at"]
    without[f"{source}_decode"] = charged[f"{source}_decode"] + charged[f"{target}_decode"]
    without[f"{target}_decode"] = 0
    paid, unmigrated = (Ledger(*table.to_numpy().T).cost(prices).sum() for table in (charged, without))
    return float(100 * (1 - paid / unmigrated))


def data_sent(
    measured: Measured, prompts: pd.Series, tokenize: Callable[[bytes], list[int]], entries: int
) -> pd.DataFrame:
    """Bytes that each hand-over sends: prompt and generated tokens, as text and as token ids in three forms.

    prompts    the user's words by prompt id
    tokenize   of the vocabulary that both endpoints share, which has so many `entries`
    Packed ids take as many bytes each as the vocabulary needs.
    """
    rows = []
    for _, part in measured["tokens"].groupby(["setting", "policy", "request"]):
        before = part[part["source"] == part["source"].iloc[0]]
        words = prompts[part["prompt"].iloc[0]].encode()
        ids = tokenize(words) + [int(one) for one in before["id"]]
        rows.append(
            {
                "text": len(words) + len("".join(before["text"]).encode()),
                "packed ids": len(ids) * -(-(entries - 1).bit_length() // 8),
                "32-bit ids": 4 * len(ids),
                "ids in JSON": len(",".join(map(str, ids))),
            }
        )
    return pd.DataFrame(rows, columns=["text", "packed ids", "32-bit ids", "ids in JSON"])


def longest_of_both(tokens: pd.DataFrame) -> pd.DataFrame:
    """The tokens of the live answer that migrated with the most tokens on both sides."""
    groups = tokens.groupby(["setting", "policy", "request"])
    return groups.get_group(max(groups.groups, key=lambda key: groups.get_group(key)["source"].value_counts().min()))
