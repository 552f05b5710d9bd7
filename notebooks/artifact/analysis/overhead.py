"""What planning and deciding cost: measured times and memory as tables, and whether the two planners agree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from artifact.analysis import transcription
from artifact.data.traces import Service
from artifact.measure.overhead import OURS, PAPER, PLAIN
from artifact.measure.store import Measured
from disco_core.cost import End
from disco_core.dispatch import plan_device_constrained, plan_server_constrained
from disco_core.latency import TTFTDistribution
from disco_core.workload import LengthDistribution

WITH_F = "build F + plan DiSCo-D"
PAPER_MS = {"plan DiSCo-S": 9.08, WITH_F: 14.86}  # for PAPER samples, on the paper's machine (N)
WORKS = ("build F", "plan DiSCo-S", "plan DiSCo-D", WITH_F, "decide a request", "decide a token", "simulate")
COLOURS = {
    "plan DiSCo-S": "#0173b2",
    "plan DiSCo-D": "#56b4e9",
    WITH_F: "#56b4e9",
    "build F": "#404040",
    "decide a request": "#0173b2",
    "decide a token": "#d55e00",
    "simulate": "#6a3d9a",
    "simulate a request": "#6a3d9a",
}
LOOK: dict[str, Any] = {  # ours and the transcription, for seaborn's lineplot
    "hue": "work",
    "palette": COLOURS,
    "style": "by",
    "style_order": [OURS, PLAIN],
    "dashes": {OURS: "", PLAIN: (3, 1.5)},
    "markers": {OURS: "o", PLAIN: "s"},
}
HEADERS = {  # what a reader sees in place of a column's name
    "n": "samples",
    "median_ms": "ours (ms)",
    "low_ms": "from",
    "high_ms": "to",
    "transcription_ms": "transcription (ms)",
    "speedup": "times ours",
    "paper_ms": "paper (ms)",
}


def legend_above(panel: Axes) -> None:
    """Move the legend above a panel, without the names of the columns that seaborn adds."""
    handles, labels = panel.get_legend_handles_labels()
    shown = {label: handle for handle, label in zip(handles, labels, strict=True) if label not in ("work", "by")}
    panel.legend(list(shown.values()), list(shown), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def agreement(services: Mapping[str, Service], prompts: LengthDistribution, seed: int) -> pd.DataFrame:
    """For each service, over nine budgets: waits the transcription sets, those that are the plan's, equal thresholds.

    A plan mixes two waits at the length where the budget ends; the transcription's is to be one of the two.
    """
    rows = []
    for name, service in services.items():
        rng = np.random.default_rng(seed)
        ttft_s, lengths = service.ttft.sample(2000, rng), prompts.sample(2000, rng)
        ttft, f = TTFTDistribution(ttft_s), transcription.make_f(ttft_s.tolist())
        for b in np.arange(1, 10) / 10:
            plan = plan_device_constrained(lengths, ttft, b)
            waits = transcription.device_constrained(lengths.tolist(), f, b)
            pairs = zip(plan.prompt_tokens, plan.delays_s[End.DEVICE], strict=True)
            agree = [waits[length] in pair for length, pair in pairs]
            server_delay, _ = plan_server_constrained(lengths, b).draw(lengths)
            threshold = transcription.server_constrained(lengths.tolist(), b)
            same = np.array_equal(np.isinf(server_delay), lengths <= threshold)
            rows.append((name, len(agree), sum(agree), 1, int(same)))
    columns = ["service", "waits", "equal waits", "thresholds", "equal thresholds"]
    return pd.DataFrame(rows, columns=columns).groupby("service", sort=False).sum().reset_index()


def times(measured: Measured) -> pd.DataFrame:
    """Every call: work, by, n (samples), repeat, ms; building F and planning DiSCo-D also together, of one repeat."""
    rows = measured["values"].query("unit == 's'")
    wide = rows.pivot(index=["by", "n", "repeat"], columns="work", values="value")
    wide[WITH_F] = wide["build F"] + wide["plan DiSCo-D"]
    long = wide.melt(ignore_index=False, value_name="ms").dropna().reset_index()
    return long.assign(ms=1e3 * long.ms)


def summary(calls: pd.DataFrame) -> pd.DataFrame:
    """Each work at each size: our median and quartiles, the transcription's median, the ratio, the paper's time."""
    spread = calls.groupby(["work", "n", "by"]).ms.quantile([0.25, 0.5, 0.75]).unstack()
    rows = []
    for work in WORKS:
        for n in sorted(set(calls.n)):
            low, median, high = spread.loc[work, n, OURS]
            plain = spread.loc[work, n, PLAIN][0.5] if (work, n, PLAIN) in spread.index else np.nan
            paper = PAPER_MS.get(work, np.nan) if n == PAPER else np.nan
            rows.append((work, n, median, low, high, plain, plain / median, paper))
    return pd.DataFrame(rows, columns=["work", *HEADERS])


def peaks(measured: Measured) -> pd.DataFrame:
    """Peak memory of one call beyond its input: work, by, n, peak_bytes, bytes per sample; decisions need none."""
    rows = measured["values"].query("unit == 'bytes'").drop(columns=["unit", "repeat"])
    rows = rows.rename(columns={"value": "peak_bytes"})[lambda t: ~t.work.str.startswith("decide")]
    return rows.assign(bytes_per_sample=rows.peak_bytes / rows.n)
