"""Tables of a pair's study, as its page shows them."""

import numpy as np
import pandas as pd

from artifact.pair.splits import DEPENDENT, FLOOR, POLICIES, SERVER
from artifact.pair.study import Study
from disco_core.beyond.expectation import expected
from disco_core.dispatch import plan_server_only

LONG_S = 2 * 3600  # from which span on a record is shown by hour


def by_hour(study: Study) -> bool:
    """Whether the record has a clock and spans some hours."""
    found = study.pair.requests
    return found.began_s is not None and float(np.ptp(found.arrival_s)) >= LONG_S


def over_time(study: Study) -> pd.DataFrame:
    """P50 and P99 of TTFT, and how many requests: by hour of day (UTC), or by quarters of a short record."""
    found = study.pair.requests
    at, span_s = found.arrival_s, float(np.ptp(found.arrival_s))
    if by_hour(study) and found.began_s is not None:
        hour = ((found.began_s + at) // 3600 % 24).astype(int)
        when = pd.Series([f"{one:02d}:00" for one in hour])
    else:
        quarter = np.minimum((at - at[0]) // (max(span_s, 1e-9) / 4), 3).astype(int)
        when = pd.Series([f"{25 * one}-{25 * one + 25} % of the record" for one in quarter])
    groups = pd.Series(study.ttft_s).groupby(when.to_numpy())
    level = {"P50 (s)": 0.5, "P90 (s)": 0.9, "P99 (s)": 0.99}
    columns = {
        name: groups.agg(lambda values, q=q: np.quantile(values, q, method="inverted_cdf"))
        for name, q in level.items()
    }
    return pd.DataFrame({"requests": groups.size(), **columns}).rename_axis("when").reset_index()


def policies(study: Study) -> pd.DataFrame:
    """Every policy at the shown budget: TTFT with bands, the share of each endpoint in %, $ per 1,000 requests."""
    table = study.policies[np.isclose(study.policies["b"], study.shown_budget)].set_index("policy")
    rows = table.loc[[*POLICIES, FLOOR]]
    shown = pd.DataFrame({"policy": rows.index})
    times = {"mean": "mean_s", "P99": "p99_s"}
    for name, value in times.items():
        shown[f"{name} TTFT (s)"] = rows[value].to_numpy()
    if study.cost is not None:
        shown["$ per 1,000"] = [np.nan if name == FLOOR else study.price(name) for name in rows.index]
    for end in ("server", "device"):
        shown[f"{end} (%)"] = 100 * rows[f"{end}_share"].to_numpy()
    for name, value in times.items():
        bands = zip(rows[f"{value}_low"], rows[f"{value}_high"], strict=True)
        shown[f"{name}, 95 %"] = [f"{low:.3g} to {high:.3g}" for low, high in bands]
    return shown


def live(study: Study) -> pd.DataFrame:
    """Mean TTFT under the recommended plan and under server only, measured live, beside what is predicted.

    The cut in percent with its 95 % band, a bootstrap over prompts; empty without live answers.
    """
    wide = study.pair.live.pivot(index="request", columns="policy", values=["ttft_s", "prompt_tokens"]).dropna()
    policies = [name for name in wide["ttft_s"] if name != SERVER] if len(wide) > 1 else []
    if SERVER not in wide.get("ttft_s", ()) or not policies:
        return pd.DataFrame()
    other = policies[0]
    before, after = (wide["ttft_s", name].to_numpy(float) for name in (SERVER, other))
    rows = np.random.default_rng(study.seed).integers(before.size, size=(2000, before.size))
    low, high = np.quantile(100 * (1 - after[rows].mean(axis=1) / before[rows].mean(axis=1)), [0.025, 0.975])
    lengths = wide["prompt_tokens", SERVER].to_numpy(np.int64)
    ttft = study.dependence.ttft(lengths) if study.dependence.p_value < DEPENDENT else study.ttft
    alone_s, predicted = (
        expected(plan, lengths, ttft, study.pair.device).mean_s
        for plan in (plan_server_only(), study.recommendation.plan)
    )
    return pd.DataFrame(
        {
            "": ["measured", "predicted for these prompts"],
            "prompts": before.size,
            "server only, mean TTFT (s)": [before.mean(), alone_s],
            "recommended plan, mean TTFT (s)": [after.mean(), predicted],
            "cut (%)": [100 * (1 - after.mean() / before.mean()), 100 * (1 - predicted / alone_s)],
            "95 % from": [low, np.nan],
            "to": [high, np.nan],
        }
    )
