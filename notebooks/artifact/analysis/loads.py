"""A server under load beside a device that requests queue for: TTFT by load, and up to which load DiSCo-S gains.

`analysis.queues` simulates a constrained server whose TTFT does not depend on its load. Here F is what was measured
at a load of the server: either independent of the device's queue, or in the order in which it was measured, with the
device's requests arriving as the server's did.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import budgets as policies
from artifact.analysis import scenario
from artifact.analysis.queues import QueueStudy
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.queueing import alone_s, simulate_queue
from disco_core.workload import LengthDistribution, Workload

POLICIES = ("DiSCo", "Stoch", "Stoch+")
BLOCK = 10  # consecutive requests that a bootstrap keeps together, since neighbours wait together
REPEATS = 10  # of the measured requests where one stream serves server and device, each with other answer lengths
MEASURED, MIXED = "as measured", "in random order"  # the server's TTFT beside the device's arrivals


def answered(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that got a first token."""
    return requests[requests["ttft_s"].notna()]


def by_load(requests: pd.DataFrame, replicates: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row for each load: requests, failed, mean, P50, P90 and P99 of TTFT in seconds.

    With replicates, P50 and P99 have _low and _high: a 95 % band over blocks of consecutive requests.
    """
    rows = []
    for load, part in requests.groupby("load"):
        ttft_s = answered(part)["ttft_s"].to_numpy(float)
        row = {"load": load, "per_second": part["rate"].iloc[0], "requests": len(part)}
        row |= {"failed": len(part) - ttft_s.size, "mean_s": ttft_s.mean()}
        row |= {f"p{100 * q:g}_s": _quantile(ttft_s, q) for q in (0.5, 0.9, 0.99)}
        drawn = [_resampled(ttft_s, rng) for _ in range(replicates)]
        for name, q in (("p50_s", 0.5), ("p99_s", 0.99)) if replicates else ():
            low, high = np.quantile([_quantile(one, q) for one in drawn], [0.025, 0.975])
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _resampled(values: Floats, rng: np.random.Generator) -> Floats:
    """As many values in blocks of neighbours that begin anywhere; the last is followed by the first."""
    starts = rng.integers(values.size, size=-(-values.size // BLOCK))
    drawn: Floats = values[(starts[:, None] + np.arange(BLOCK)).ravel()[: values.size] % values.size]
    return drawn


def _quantile(values: Floats, q: float) -> float:
    return float(np.quantile(values, q, method="inverted_cdf"))


@dataclass(frozen=True)
class LoadStudy:
    """DiSCo-S and random dispatch with a constrained server, at loads of the device, for each load of the server.

    study      requests, lengths and recorded arrivals; `study.loads` are loads of the device
    requests   as measured: load, stretch, arrival_s, prompt_tokens, ttft_s
    """

    study: QueueStudy
    devices: Mapping[str, DeviceProfile]
    budgets: Sequence[float]
    requests: pd.DataFrame

    def apart(self) -> Iterator[dict[str, Any]]:
        """Rows of the device's queue at every recorded pattern and load, the server's TTFT drawn from its F."""
        study, n = self.study, self.study.requests
        for server, part in answered(self.requests).groupby("load"):
            ttft = TTFTDistribution(part["ttft_s"])
            ttft_s = ttft.sample(n, np.random.default_rng(study.seeds[2]))
            for (phone, device), b in product(self.devices.items(), self.budgets):
                plans = policies.spending(b, Constraint.SERVER, study.prompt, ttft)
                delays = {name: self._delays(plan, study.workload) for name, plan in plans.items()}
                work_s = alone_s(study.workload, device).sum()
                for pattern, load, policy in product(study.patterns, study.loads, POLICIES):
                    arriving = dataclasses.replace(study.workload, arrival_s=study.arrivals[pattern] * work_s / load)
                    given = {"ttft_s": ttft_s, "delays_s": delays[policy]}
                    keys = {"server": server, "device": phone, "pattern": pattern, "load": load, "b": b}
                    yield keys | {"policy": policy} | _p99(arriving, plans[policy], ttft, device, given)

    def tied(self) -> Iterator[dict[str, Any]]:
        """Rows where one stream of requests loads both: the device's load is the server's, its arrivals the measured.

        The column `order` tells whether each request has the TTFT that was measured for it, or one of another.
        """
        rng = np.random.default_rng(self.study.seeds[3])
        for server, part in answered(self.requests).groupby("load"):
            workload, ttft_s = self._stream(part, rng)
            ttft = TTFTDistribution(part["ttft_s"])
            orders = {MEASURED: ttft_s, MIXED: rng.permutation(ttft_s)}
            for (phone, device), b in product(self.devices.items(), self.budgets):
                span_s = alone_s(workload, device).sum() / float(server)
                arriving = dataclasses.replace(workload, arrival_s=workload.arrival_s * span_s)
                plans = policies.spending(b, Constraint.SERVER, LengthDistribution.of(part["prompt_tokens"]), ttft)
                for policy, (order, values) in product(POLICIES, orders.items()):
                    given = {"ttft_s": values, "delays_s": self._delays(plans[policy], workload)}
                    keys = {"server": server, "device": phone, "pattern": order, "load": server, "b": b}
                    yield keys | {"policy": policy} | _p99(arriving, plans[policy], ttft, device, given)

    def _stream(self, part: pd.DataFrame, rng: np.random.Generator) -> tuple[Workload, Floats]:
        """The measured requests, stretch after stretch, repeated, with arrivals in [0, 1] and their TTFT."""
        stretches = [one for _, one in part.groupby("stretch")]
        spans = np.array([one["arrival_s"].max() + 1 / one["rate"].iloc[0] for one in stretches])
        once = np.concatenate(
            [one["arrival_s"] + start for one, start in zip(stretches, np.cumsum(spans) - spans, strict=True)]
        )
        arrival_s = (once + spans.sum() * np.arange(REPEATS)[:, None]).ravel() / (spans.sum() * REPEATS)
        ordered = pd.concat(stretches * REPEATS)
        answers = self.study.answer.sample(len(ordered), rng)
        return Workload(arrival_s, ordered["prompt_tokens"].to_numpy(np.int64), answers), ordered["ttft_s"].to_numpy()

    def _delays(self, plan: Any, workload: Workload) -> Any:
        return plan.draw(workload.prompt_tokens, np.random.default_rng(self.study.seeds[3]))


def _p99(load: Workload, plan: Any, ttft: TTFTDistribution, device: DeviceProfile, given: Any) -> dict[str, float]:
    result = simulate_queue(load, plan, scenario.server(ttft), device, **given)
    return {"p99_s": _quantile(result.ttft_s, 0.99), "busy": result.device_busy}


def cuts(rows: pd.DataFrame) -> pd.DataFrame:
    """DiSCo-S's cut of P99 in percent, averaged over budgets: a row for each server, device, pattern and load.

    Columns: cut against Stoch, cut_favourable against Stoch+, busy (the share of time the device works, DiSCo-S).
    """
    keys = ["server", "device", "pattern", "load"]
    wide = rows.pivot(index=[*keys, "b"], columns="policy", values=["p99_s", "busy"])
    p99_s = wide["p99_s"]
    table = pd.DataFrame(
        {
            "cut": 100 * (1 - p99_s["DiSCo"] / p99_s["Stoch"]),
            "cut_favourable": 100 * (1 - p99_s["DiSCo"] / p99_s["Stoch+"]),
            "busy": wide["busy"]["DiSCo"],
        }
    )
    return table.groupby(keys, sort=False).mean().reset_index()


def medians(cuts: pd.DataFrame, by: Sequence[str] = ("server", "load")) -> pd.DataFrame:
    """Medians over cells (pattern, device)."""
    return cuts.groupby(list(by))[["cut", "cut_favourable", "busy"]].median().reset_index()


def gains_up_to(load: Sequence[float] | Floats, cut: Sequence[float] | Floats) -> float:
    """The load at which the cut first falls to 0, interpolated; the first or last one where it never changes.

    >>> gains_up_to([0.1, 0.3, 0.5], [20.0, 10.0, -10.0])
    0.4
    """
    loads, values = np.asarray(load, float), np.asarray(cut, float)
    lost = np.flatnonzero(values <= 0)
    if not lost.size:
        return float(loads[-1])
    if (k := int(lost[0])) == 0:
        return float(loads[0])
    share = values[k - 1] / (values[k - 1] - values[k])
    return float(np.round(loads[k - 1] + share * (loads[k] - loads[k - 1]), 12))


def ends(cuts: pd.DataFrame) -> pd.DataFrame:
    """For each load of the server, the load of the device up to which DiSCo-S gains, by the median cut over cells.

    Columns: server, up_to against Stoch, up_to_favourable against Stoch+; up_to_low and up_to_high are the quartiles
    of the cells, each by its own cut.
    """
    rows = []
    for server, part in medians(cuts).groupby("server"):
        row = {"server": server, "up_to": gains_up_to(part["load"], part["cut"])}
        row["up_to_favourable"] = gains_up_to(part["load"], part["cut_favourable"])
        cells = cuts[cuts["server"] == server].groupby(["device", "pattern"])
        each = [gains_up_to(one["load"], one["cut"]) for _, one in cells]
        row["up_to_low"], row["up_to_high"] = np.quantile(each, [0.25, 0.75])
        rows.append(row)
    return pd.DataFrame(rows)
