"""The notebooks' input: services, prompt and output lengths, arrival patterns, devices, tables.

All of it comes from the committed tables of `data/` (source "tables"), without a network, or from the published
series (source "public"), fetched at first use.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import tables
from artifact.errors import TraceError
from artifact.files import DATA
from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

LABELS = {"tables": "committed tables", "public": "public series"}
_KEPT = "taken as parsed (no raw file to fetch)"  # listed in data/README.md
AS_PARSED = f"committed tables, {_KEPT}"
SERVER_RATE = 50.0  # tokens per second of every simulated server; no trace has a decode rate, and TTFT needs none
BEGAN_S = 4 * 3600 + 21 * 60  # time of day at which the series with hours (deepseek-chat) started
_MEND = "restore it with `git checkout data` or make it anew with `make data`"
_COLUMNS = {  # the columns of each table that are used; the last one is never empty
    "services": ["paper_service", "stand_in", "price_out_usd_per_1m", "price_in_usd_per_1m", "service"],
    "ttft_quantiles": ["service", "host", "n", "level", "ttft_s"],
    "ttft_quantiles_as_parsed": ["service", "host", "n", "level", "ttft_s"],
    "ttft_by_day": ["service", "day", "n", "level", "ttft_s"],
    "ttft_by_hour": ["service", "hour", "n", "level", "ttft_s"],
    "ttft_series": ["service", "gap_median_s", "lag1", "lag1_rank", "n"],
    "ttft_forecasts": ["service", "forecast", "n", "mae_s", "mape", "cut", "cut_low", "cut_high"],
    "ttft_length_correlation": ["trace", "endpoint", "pearson", "low", "high", "n"],
    "prompts": ["id", "prompt", "tokens"],
    "prompt_tokens": ["dataset", "tokens", "count"],
    "output_tokens": ["dataset", "tokens", "count"],
    "output_tokens_as_parsed": ["dataset", "tokens", "count"],
    "arrivals": ["pattern", "start_s", "window_s", "requests"],
    "arrivals_as_parsed": ["pattern", "start_s", "window_s", "requests"],
    "devices": ["device", "model", "prefill_tok_per_s", "decode_tok_per_s"],
    "device_ttft_as_parsed": ["model", "part", "s_per_token", "startup_s", "decode_tok_per_s", "pearson", "n"],
    "device_residuals_as_parsed": ["model", "part", "n", "level", "ratio"],
    "phones": ["device", "engine", "model", "prefill_mj_per_tok", "decode_mj_per_tok"],
    "architectures": ["layers", "hidden", "kv_width", "mlp", "mlp_matrices", "vocab", "model", "origin"],
    "claims": ["id"],
}


@dataclass(frozen=True)
class Service:
    """A commercial service in a trace.

    `ttft` is F over all `n` requests; `hosts` has the count and F of each host that the trace pools. Prices are in
    dollars per token. `paper_service` is the service of the paper that it represents, or None, `stand_in` says how
    well, and `source` is the origin of the numbers.
    """

    name: str
    paper_service: str | None
    stand_in: str
    n: int
    ttft: TTFTDistribution
    hosts: dict[str, tuple[int, TTFTDistribution]]
    price_in: float
    price_out: float
    source: str

    def resample(self, rng: np.random.Generator) -> TTFTDistribution:
        """One bootstrap replicate of F: hosts drawn with replacement, then as many requests as each host has.

        Of a service with one host only requests are drawn, which omits the variation between hosts.
        """
        hosts = list(self.hosts.values())
        chosen = rng.integers(len(hosts), size=len(hosts)) if len(hosts) > 1 else [0]
        return TTFTDistribution(np.concatenate([hosts[i][1].sample(hosts[i][0], rng) for i in chosen]))


def services() -> list[str]:
    """Names of all services in the order of `data/services.csv`."""
    return [str(name) for name in table("services")["service"]]


def paper_services(source: str = "tables") -> dict[str, Service]:
    """The services that represent one of the paper's (column `paper_service`), by name."""
    stands = table("services").dropna(subset="paper_service")["service"]
    return {str(name): service(str(name), source) for name in stands}


def service(name: str, source: str = "tables") -> Service:
    """One service; InputError for an unknown name or source.

    A service whose raw trace is not public comes from its committed table with either source; its `source` says so.
    """
    _check(name, services(), "service")
    _check(source, LABELS, "source")
    row = table("services").set_index("service").loc[name]
    hosts, label = _hosts(name, source)
    counts = [n for n, _ in hosts.values()]
    pool = [ttft for _, ttft in hosts.values()]
    return Service(
        name=name,
        paper_service=None if pd.isna(row["paper_service"]) else str(row["paper_service"]),
        stand_in=str(row["stand_in"]),
        n=sum(counts),
        ttft=pool[0] if len(pool) == 1 else TTFTDistribution.mixture(pool, counts),
        hosts=hosts,
        price_in=float(row["price_in_usd_per_1m"]) / 1e6,
        price_out=float(row["price_out_usd_per_1m"]) / 1e6,
        source=label,
    )


def replicates(services: Mapping[str, Service], count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The cells of a bootstrap over traces: `service` (the name), `replicate` and `ttft`, the distribution F.

    Replicate 0 is the F of the service itself, the others are drawn with one generator, service by service.
    """
    for name, one in services.items():
        for replicate in range(count + 1):
            ttft = one.resample(rng) if replicate else one.ttft
            yield {"service": name, "replicate": replicate, "ttft": ttft}


def streams(seed: int, replicate: int, count: int) -> list[np.random.SeedSequence]:
    """`count` seeds of what a replicate draws, such as its requests; the same for all services.

    Those of replicate 0 are the first that are spawned from the seed itself.
    """
    return np.random.SeedSequence([seed, replicate] if replicate else seed).spawn(count)


def _hosts(name: str, source: str) -> tuple[dict[str, tuple[int, TTFTDistribution]], str]:
    as_parsed = table("ttft_quantiles_as_parsed")
    if name in set(as_parsed["service"]):
        levels, label = as_parsed, AS_PARSED
    elif source == "public":
        found = tables.series(name).groupby("host")["ttft_s"]
        return {str(host): (len(ttft), TTFTDistribution(ttft)) for host, ttft in found}, LABELS[source]
    else:
        levels, label = table("ttft_quantiles"), LABELS[source]
    try:
        hosts = {
            str(host): (int(rows["n"].iloc[0]), TTFTDistribution.from_quantiles(rows["level"], rows["ttft_s"]))
            for host, rows in levels[levels["service"] == name].groupby("host")
        }
    except InputError as error:
        raise TraceError(f"the TTFT table of {name} is not what it was: {error}; {_MEND}") from None
    if not hosts:
        raise TraceError(f"service {name!r} has no rows in the TTFT tables of {DATA}; `make data` makes them")
    return hosts, label


def calls(name: str, source: str = "tables", rng: np.random.Generator | None = None) -> pd.DataFrame:
    """A service's requests in order of time, for `forecasts`: time_s, series, hour, ttft_s.

    source   "public": as published. "tables": a synthetic series for each host, drawn with `rng` from the quantiles,
             by hour where these are known, and the rank correlation of neighbours
    InputError for a service without a published order.
    """
    from artifact.analysis import forecasts

    _check(source, LABELS, "source")
    kept = table("ttft_series").set_index("service")
    _check(name, [str(one) for one in kept.index], "service with a published order")
    if source == "public":
        return tables.calls(name)
    gap_s, lag1_rank = (float(kept.loc[name, column]) for column in ("gap_median_s", "lag1_rank"))
    rows = table("ttft_by_hour")
    hours = {
        int(hour): TTFTDistribution.from_quantiles(one["level"], one["ttft_s"])
        for hour, one in rows[rows["service"] == name].groupby("hour")
    }
    parts = []
    for host, (n, ttft) in service(name).hosts.items():
        time_s = gap_s * np.arange(n)
        hour = (BEGAN_S + time_s) // 3600 % 24 if hours else np.zeros(n)
        values = forecasts.drawn(hour, hours or {0: ttft}, ttft, lag1_rank, checks.generator(rng))
        found = {"time_s": time_s, "series": host, "hour": hour if hours else np.nan, "ttft_s": values}
        parts.append(pd.DataFrame(found))
    return pd.concat(parts).sort_values("time_s", kind="stable", ignore_index=True)


def datasets(kind: str = "prompt") -> list[str]:
    """Names of the datasets that have `prompt` or `output` lengths."""
    return list(dict.fromkeys(str(name) for name in _lengths(kind)["dataset"]))


def lengths(dataset: str, kind: str = "prompt", source: str = "tables") -> LengthDistribution:
    """Lengths in tokens of a dataset's prompts, in the device model's chat template, or of its outputs.

    InputError for an unknown dataset, kind or source. The public source counts the texts themselves, without bins.
    """
    _check(source, LABELS, "source")
    _check(dataset, datasets(kind), f"dataset with {kind} lengths")
    if source == "public" and dataset in tables.LENGTHS:
        found = tables.lengths(dataset, kind, binned=False)
    else:
        every = _lengths(kind)
        found = every[every["dataset"] == dataset]
    return LengthDistribution(found["tokens"], found["count"])


def _lengths(kind: str) -> pd.DataFrame:
    _check(kind, ("prompt", "output"), "kind of length")
    if kind == "prompt":
        return table("prompt_tokens")
    return pd.concat([table("output_tokens"), table("output_tokens_as_parsed")])


@dataclass(frozen=True)
class ArrivalPattern:
    """Arrivals of requests in a trace: `counts` in windows of `window_s` seconds, shape (windows,).

    `stamps_s` are the recorded arrival times, or None if only counts are known; `source` is their origin.
    """

    name: str
    window_s: float
    counts: Ints
    stamps_s: Floats | None
    source: str

    @property
    def n(self) -> int:
        """Requests recorded."""
        return int(self.counts.sum())

    @property
    def span_s(self) -> float:
        """Length of the record in seconds, rounded up to full windows."""
        return self.counts.size * self.window_s

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """Arrivals of n of the recorded requests, drawn without replacement: ascending seconds since the start, (n,).

        From counts, arrivals are uniform in each window, which omits bursts within it. InputError if fewer than n
        were recorded.
        """
        size = checks.count(n, "n")
        if size > self.n:
            raise InputError(f"n must be at most {self.n}, the requests {self.name} recorded, got {n}")
        if self.stamps_s is not None:
            return np.sort(checks.generator(rng).choice(self.stamps_s, size, replace=False))
        drawn = checks.generator(rng).multivariate_hypergeometric(self.counts, size)
        window = np.repeat(np.arange(drawn.size), drawn)
        return np.sort((window + rng.random(size)) * self.window_s)


def patterns() -> list[str]:
    """Names of the recorded arrival patterns."""
    return list(dict.fromkeys(str(name) for name in _arrivals()["pattern"]))


def pattern(name: str, source: str = "tables") -> ArrivalPattern:
    """One recorded arrival pattern; InputError for an unknown name or source.

    The public source has arrival times where these can be fetched, else counts; the pattern's `source` says which.
    """
    _check(name, patterns(), "arrival pattern")
    _check(source, LABELS, "source")
    found, stamps_s, label = _arrivals(), None, LABELS["tables"]
    if name not in tables.ARRIVALS:
        label = AS_PARSED
    elif source == "public":
        stamps_s, label = tables.stamps(name), LABELS[source]
    rows = found[found["pattern"] == name]
    counts = rows["requests"].to_numpy(np.int64)
    return ArrivalPattern(name, float(rows["window_s"].iloc[0]), counts, stamps_s, label)


def origin(*found: Service | ArrivalPattern) -> str:
    """The origin of the numbers of several services and patterns, as one phrase."""
    labels = sorted({one.source for one in found})
    if labels == [LABELS["tables"], AS_PARSED]:
        return f"{LABELS['tables']}, some {_KEPT}"
    return "; ".join(labels)


def _arrivals() -> pd.DataFrame:
    return pd.concat([table("arrivals"), table("arrivals_as_parsed")])


def devices() -> dict[str, DeviceProfile]:
    """The paper's three devices, by "device + model"; their speeds are reconstructed (R)."""
    return {
        f"{row.device} + {row.model}": DeviceProfile(float(row.prefill_tok_per_s), float(row.decode_tok_per_s))
        for row in table("devices").itertuples()
    }


def table(name: str, source: str = "tables") -> pd.DataFrame:
    """A table of `data/` as committed, or computed from the public series; InputError for an unknown name."""
    _check(source, LABELS, "source")
    _check(name, sorted(path.stem for path in DATA.glob("*.csv")), "table")
    if source == "public" and name in tables.TABLES:
        return tables.TABLES[name]().reset_index(drop=True)
    path = DATA / f"{name}.csv"
    try:
        found = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise TraceError(f"{path} cannot be read: {error}; {_MEND}") from None
    missing = [column for column in _COLUMNS[name] if column not in found]
    if missing or found.empty or found[_COLUMNS[name][-1]].isna().any():
        what = f"no column {', '.join(missing)}" if missing else "no rows" if found.empty else "a row that was cut"
        raise TraceError(f"{path} is not the table it was, it has {what}; {_MEND}")
    return found


def _check(name: str, allowed: Sequence[str] | dict[str, str], what: str) -> None:
    if name not in allowed:
        raise InputError(f"no {what} {name!r}; there are {', '.join(allowed) or 'none'}")
