"""`make data`: the tables of `data/`, computed from the public trace files, the same bytes on every run.

`TABLES` has each table's name and the function that computes it. Tables written by hand (devices, services) and those
taken as parsed are not computed here; `data/README.md` describes all of them.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from artifact.data.model import build, count_tokens
from artifact.data.parse import load
from artifact.files import write_atomic
from disco_core.latency import TTFTDistribution

# Even levels up to 0.95, then ever finer ones. A committed value is the largest sample of its step. In the tail
# samples lie far apart, so short steps keep the table's mean close to that of the samples.
LEVELS = np.concatenate([np.arange(1, 191) / 200, np.arange(951, 991) / 1000, np.arange(1981, 2001) / 2000])
HOUR_LEVELS = np.concatenate([np.arange(1, 20) / 20, [0.975, 0.99, 1.0]])
BINS_PER_OCTAVE = 8
FASTEST = ("llama-3-70b", "command-r", "command-r-plus", "gpt-4-turbo")
SERVICES = ("deepseek-chat", *FASTEST)
ARRIVALS = ("azure-code", "azure-conv")
WINDOW_S = 10.0  # of the counts of arrivals
_TOKENS = {"prompt": "prompt_tokens", "output": "output_tokens"}
LENGTHS = {  # of each dataset the columns with its texts, or with published token counts
    "alpaca": {"prompt": "prompt", "output": "output"},
    "arena-hard": {"prompt": "prompt"},
    "azure-code": _TOKENS,
    "azure-conv": _TOKENS,
    "mt-bench": {"prompt": "prompt"},
}


def series(service: str) -> pd.DataFrame:
    """One service's requests as published: time, region, host, ttft_s; one row each, in order of time."""
    if service == "deepseek-chat":
        return load("deepseek")[["time", "ttft_s"]].assign(region="", host="deepseek")
    calls = load("thefastest")
    return calls[calls["model"] == service].sort_values("time", kind="stable")


def calls(service: str) -> pd.DataFrame:
    """The same in the columns of `forecasts`: time_s since the first, series (host and region), hour, ttft_s."""
    requests = series(service)
    since = (requests["time"] - requests["time"].iloc[0]).dt.total_seconds()
    return pd.DataFrame(
        {
            "time_s": since,
            "series": (requests["host"] + " " + requests["region"]).str.strip(),
            "hour": requests["time"].dt.hour,
            "ttft_s": requests["ttft_s"],
        }
    ).reset_index(drop=True)


def inverse_cdf(samples: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
    """`F^-1(level)`: the smallest sample x with `F(x) >= level`, never interpolated; shapes (n,) and (levels,)."""
    return TTFTDistribution(samples).quantile(np.asarray(levels) - 1e-9)  # as a float, a level k / n may exceed F


def quantiles(samples: pd.Series, levels: ArrayLike = LEVELS) -> pd.DataFrame:
    """The committed form of F: n, level, ttft_s. A trace with no more samples than levels has the levels k/n."""
    n = len(samples)
    levels = levels if n > np.size(levels) else np.arange(1, n + 1) / n
    table = pd.DataFrame({"n": n, "level": levels, "ttft_s": inverse_cdf(samples, levels)})
    return table.round({"level": 6, "ttft_s": 4})


def ttft_quantiles() -> pd.DataFrame:
    """Per service and host: TTFT quantiles."""
    return pd.concat(
        quantiles(calls["ttft_s"]).assign(service=service, host=host)[["service", "host", "n", "level", "ttft_s"]]
        for service in SERVICES
        for host, calls in series(service).groupby("host")
    )


def ttft_by_hour() -> pd.DataFrame:
    """deepseek-chat by hour of the client's local day: TTFT quantiles."""
    calls = series("deepseek-chat")
    return _quantiles_by("hour", calls["time"].dt.hour, calls["ttft_s"], HOUR_LEVELS)


def ttft_by_day() -> pd.DataFrame:
    """deepseek-chat by day, 24 h each from its first request on: TTFT quantiles."""
    calls = series("deepseek-chat")
    return _quantiles_by("day", (calls["time"] - calls["time"].min()).dt.days + 1, calls["ttft_s"], LEVELS)


def _quantiles_by(name: str, group: pd.Series, ttft_s: pd.Series, levels: ArrayLike) -> pd.DataFrame:
    parts = [quantiles(part, levels).assign(**{name: value}) for value, part in ttft_s.groupby(group)]
    return pd.concat(parts).assign(service="deepseek-chat")[["service", name, "n", "level", "ttft_s"]]


def ttft_series() -> pd.DataFrame:
    """Per service: moments, and the correlation of a call's TTFT with that of the call before it."""
    return pd.DataFrame(_series_row(name, series(name)) for name in SERVICES).round(4)


def _series_row(service: str, calls: pd.DataFrame) -> dict[str, object]:
    # A pair is two consecutive calls to one host from one region; means of hosts are subtracted first.
    group = calls.groupby(["host", "region"])
    parts = {"raw": calls["ttft_s"] - group["ttft_s"].transform("mean"), "rank": group["ttft_s"].rank(pct=True)}
    before = {name: part.groupby([calls["host"], calls["region"]]).shift() for name, part in parts.items()}
    gap = group["time"].diff().dt.total_seconds()
    ttft = calls["ttft_s"]
    p50, p95, p99 = inverse_cdf(ttft, [0.5, 0.95, 0.99])
    return {
        "service": service,
        "hosts": calls["host"].nunique(),
        "n": len(calls),
        "mean_s": ttft.mean(),
        "p50_s": p50,
        "p95_s": p95,
        "p99_s": p99,
        "max_s": ttft.max(),
        "lag1": parts["raw"].corr(before["raw"]),
        "lag1_rank": parts["rank"].corr(before["rank"]),
        "gap_mean_s": gap.mean(),
        "gap_median_s": gap.median(),
    }


def ttft_forecasts() -> pd.DataFrame:
    """Per service and forecast: its errors one request ahead, over the last 30 % of the requests."""
    from artifact.analysis.forecasts import errors, forecast

    parts = [errors(forecast(calls(name))).assign(service=name) for name in SERVICES]
    return pd.concat(parts)[["service", *parts[0].columns[:-1]]].round(4)


def ttft_length_correlation() -> pd.DataFrame:
    """Every public server trace: Pearson's correlation of TTFT with prompt length, empty if the length is fixed."""
    rows = []
    for trace, unit in (("latencylab", "characters"), ("llmperf", "tokens")):
        for endpoint, calls in load(trace).groupby("endpoint"):
            rows.append(_correlation(trace, str(endpoint), calls["length"], calls["ttft_s"], unit))
    for service in SERVICES:
        trace = "deepseek" if service == "deepseek-chat" else "thefastest"
        ttft = series(service)["ttft_s"]
        rows.append(_correlation(trace, service, ttft * 0, ttft, "one fixed prompt"))
    return pd.DataFrame(rows).round(4)


def _correlation(trace: str, endpoint: str, length: pd.Series, ttft: pd.Series, unit: str) -> dict[str, object]:
    from scipy.stats import pearsonr

    row = {"trace": trace, "endpoint": endpoint, "n": len(ttft), "distinct_lengths": length.nunique()}
    row |= {"length_unit": unit, "pearson": np.nan, "low": np.nan, "high": np.nan}
    if row["distinct_lengths"] > 1:
        pearson = pearsonr(length, ttft)
        low, high = pearson.confidence_interval(0.95)  # Fisher's transformation
        row |= {"pearson": pearson.statistic, "low": low, "high": high}
    return row


def lengths(dataset: str, kind: str, *, binned: bool = True) -> pd.DataFrame:
    """Histogram of a dataset's `prompt` or `output` lengths: tokens, count.

    Texts are counted with the device model's tokenizer, prompts in its chat template. Published token counts are
    binned geometrically, unless `binned` is false.
    """
    column = LENGTHS[dataset][kind]
    values = load(dataset)[column]
    if column.endswith("_tokens"):
        return bins(values) if binned else _histogram(values)
    return _histogram(count_tokens(build(text) if kind == "prompt" else text) for text in values)


def _histogram(tokens: Iterable[int]) -> pd.DataFrame:
    value, count = np.unique(np.fromiter(tokens, np.int64), return_counts=True)
    return pd.DataFrame({"tokens": value, "count": count})


def bins(tokens: ArrayLike) -> pd.DataFrame:
    """Histogram over bins of 1/8 octave, each represented by its rounded mean: tokens, count; lengths >= 1."""
    values = np.asarray(tokens, np.int64)
    label = np.floor(np.log2(values) * BINS_PER_OCTAVE).astype(np.int64)
    grouped = pd.Series(values).groupby(label)
    table = pd.DataFrame({"tokens": grouped.mean().round().astype("int64"), "count": grouped.size()})
    return table.groupby("tokens", as_index=False)["count"].sum()


def all_lengths(kind: str) -> pd.DataFrame:
    """Per dataset: `prompt` or `output` lengths."""
    datasets = [name for name, columns in LENGTHS.items() if kind in columns]
    return pd.concat(lengths(name, kind).assign(dataset=name)[["dataset", "tokens", "count"]] for name in datasets)


def stamps(pattern: str) -> NDArray[np.float64]:
    """Arrival times of the requests of a published trace: ascending seconds since the first, shape (n,)."""
    time = load(pattern)["time"].sort_values()
    return np.asarray((time - time.iloc[0]).dt.total_seconds())


def arrivals() -> pd.DataFrame:
    """Per pattern: requests in each window of WINDOW_S seconds since the first request, empty windows included."""
    parts = []
    for pattern in ARRIVALS:
        count = np.bincount((stamps(pattern) // WINDOW_S).astype(np.int64))
        start = np.arange(count.size) * WINDOW_S
        parts.append(pd.DataFrame({"pattern": pattern, "start_s": start, "window_s": WINDOW_S, "requests": count}))
    return pd.concat(parts)


def phones() -> pd.DataFrame:
    """Phones: speed and energy by prompt length, the mean over the answer lengths."""
    by = ["device", "engine", "model", "prefill_tokens"]
    means = load("phones").drop(columns="decode_tokens").groupby(by, as_index=False).mean()
    return means.round(3)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "ttft_quantiles": ttft_quantiles,
    "ttft_by_day": ttft_by_day,
    "ttft_by_hour": ttft_by_hour,
    "ttft_series": ttft_series,
    "ttft_forecasts": ttft_forecasts,
    "ttft_length_correlation": ttft_length_correlation,
    "prompt_tokens": partial(all_lengths, "prompt"),
    "output_tokens": partial(all_lengths, "output"),
    "arrivals": arrivals,
    "phones": phones,
}


def write(out: Path) -> list[Path]:
    """Compute every table and write it atomically as `out/<name>.csv`."""
    return [write_atomic(out / f"{name}.csv", csv(table())) for name, table in TABLES.items()]


def csv(table: pd.DataFrame) -> str:
    """The text of a table's file: no index, \\n line ends, empty for unknown, at most 8 significant digits."""
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.8g"))
