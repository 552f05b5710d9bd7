"""Every policy where requests queue for one device, at recorded arrival patterns and at several loads.

The load of the device is the share of time it would work if it answered every request alone. A load of 0 stands for
no queue: every request has a device to itself.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import budgets as policies
from artifact.analysis import scenario
from artifact.data import traces
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.latency import DeviceProfile
from disco_core.queueing import QueueResult, alone_s, simulate_queue
from disco_core.simulate import Result, simulate
from disco_core.workload import LengthDistribution, Workload

NO_QUEUE, POISSON = "no queue", "Poisson"
CELL = ["service", "device", "constrained", "pattern", "load"]
NAMES = {  # of the recorded patterns, as one would print them
    "azure-code": "Azure code",
    "azure-conv": "Azure conversation",
    "mooncake-conv": "Mooncake conversation",
    "servegen-r1": "ServeGen R1",
}


@dataclass(frozen=True)
class QueueStudy:
    """What is simulated: every policy at each recorded pattern, and at Poisson arrivals, at each load.

    requests   in each run, with lengths of `prompt` and `answer`; runs of a pair see the same requests, server TTFTs
               and, for each policy, draws
    """

    patterns: Mapping[str, traces.ArrivalPattern]
    loads: Sequence[float]
    prompt: LengthDistribution
    answer: LengthDistribution
    requests: int
    seed: int

    @cached_property
    def seeds(self) -> list[np.random.SeedSequence]:
        """Seeds of the requests, of their arrivals, of the server's TTFT and of the plans."""
        return np.random.SeedSequence(self.seed).spawn(4)

    @cached_property
    def workload(self) -> Workload:
        """The requests, without arrival times."""
        return Workload.sample(self.requests, self.prompt, self.answer, np.random.default_rng(self.seeds[0]))

    @cached_property
    def arrivals(self) -> dict[str, Floats]:
        """Arrival times of each pattern, scaled to [0, 1], shape (requests,)."""
        rng = np.random.default_rng(self.seeds[1])
        times = {name: one.sample(self.requests, rng) / one.span_s for name, one in self.patterns.items()}
        return times | {POISSON: np.sort(rng.random(self.requests))}

    def answer_s(self, device: DeviceProfile) -> float:
        """Mean seconds that a device works for a request that it answers alone."""
        return float(alone_s(self.workload, device).mean())

    def runs(
        self,
        services: Mapping[str, traces.Service],
        devices: Mapping[str, DeviceProfile],
        budgets: Iterable[float],
        *,
        single: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """One row per run: mean and P99 TTFT, share used, share of dropped starts, share of time the device works.

        single   also server only and device only
        """
        pairs = product(services.items(), devices.items())
        for ((name, service), (phone, device)), constraint, b in product(pairs, Constraint, list(budgets)):
            plans = policies.spending(b, constraint, self.prompt, service.ttft)
            for policy, plan in (plans | policies.single() if single else plans).items():
                ttft_s = service.ttft.sample(self.requests, np.random.default_rng(self.seeds[2]))
                delays_s = plan.draw(self.workload.prompt_tokens, np.random.default_rng(self.seeds[3]))
                args = plan, scenario.server(service.ttft), device
                given: dict[str, Any] = {"ttft_s": ttft_s, "delays_s": delays_s}
                results: dict[tuple[str, float], Result] = {(NO_QUEUE, 0.0): simulate(self.workload, *args, **given)}
                for pattern, load in product(self.arrivals, self.loads):
                    results[pattern, load] = simulate_queue(self._arriving(pattern, load, device), *args, **given)
                for (pattern, load), result in results.items():
                    key = {"service": name, "device": phone, "constrained": constraint.value, "b": b}
                    yield key | {"policy": policy, "pattern": pattern, "load": load} | _measures(result)

    def _arriving(self, pattern: str, load: float, device: DeviceProfile) -> Workload:
        span_s = alone_s(self.workload, device).sum() / load
        return dataclasses.replace(self.workload, arrival_s=self.arrivals[pattern] * span_s)


def _measures(result: Result) -> dict[str, float]:
    p99_s = np.quantile(result.ttft_s, 0.99, method="inverted_cdf")
    measures = {"mean_s": result.ttft_s.mean(), "p99_s": p99_s, "used": result.budget_used}
    if isinstance(result, QueueResult):
        measures |= {"dropped": result.dropped.mean(), "busy": result.device_busy}
    return measures


def windows(patterns: Mapping[str, traces.ArrivalPattern]) -> pd.DataFrame:
    """Requests in each window of every pattern, and over their mean."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "pattern": name,
                    "start_s": np.arange(one.counts.size) * one.window_s,
                    "requests": one.counts,
                    "of_mean": one.counts / one.counts.mean(),
                }
            )
            for name, one in patterns.items()
        ],
        ignore_index=True,
    )


def describe(patterns: Mapping[str, traces.ArrivalPattern], answer_s: Mapping[str, float]) -> pd.DataFrame:
    """One row per pattern; `swing`: coefficient of variation of the counts beyond that of Poisson arrivals.

    answer_s   seconds that each device works for a request; its load at the recorded rate is a column of its name
    """
    rows = []
    for name, one in patterns.items():
        mean, excess = one.counts.mean(), one.counts.var() - one.counts.mean()
        row = {"pattern": name, "hours": one.span_s / 3600, "requests": one.n, "per second": one.n / one.span_s}
        row |= {"swing": np.sqrt(max(excess, 0)) / mean, "peak / mean": one.counts.max() / mean}
        rows.append(row | {f"load, {phone}": one.n / one.span_s * s for phone, s in answer_s.items()})
    return pd.DataFrame(rows)


def cuts(runs: pd.DataFrame) -> pd.DataFrame:
    """DiSCo's cuts of TTFT in percent, averaged over the budgets, for each cell: a pair, a pattern and a load.

    Columns: p99_cut and mean_cut against Stoch, p99_cut_favourable against Stoch+.
    """
    wide = runs.pivot(index=[*CELL, "b"], columns="policy", values=["p99_s", "mean_s"])
    against = {
        "p99_cut": ("p99_s", "Stoch"),
        "mean_cut": ("mean_s", "Stoch"),
        "p99_cut_favourable": ("p99_s", "Stoch+"),
    }
    table = pd.DataFrame(
        {name: 100 * (1 - wide[value, "DiSCo"] / wide[value, policy]) for name, (value, policy) in against.items()}
    )
    return table.groupby(CELL, sort=False).mean().reset_index()


def from_no_queue(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of no queue repeated as the load 0 of every pattern, so that each line begins there."""
    queued = table[table["pattern"] != NO_QUEUE]
    none = table[table["pattern"] == NO_QUEUE]
    return pd.concat([*(none.assign(pattern=name) for name in queued["pattern"].unique()), queued])


def by_load(runs: pd.DataFrame, cuts: pd.DataFrame) -> pd.DataFrame:
    """Medians of `cuts` and means of the budget and of the device's work, for each constrained endpoint and load."""
    spent = (runs["used"] / runs["b"]).groupby([runs["constrained"], runs["load"], runs["policy"]]).mean().unstack()
    keys = ["constrained", "load", "policy"]
    busy, dropped = (runs.groupby(keys)[name].mean().unstack() for name in ("busy", "dropped"))
    gains = cuts.groupby(["constrained", "load"])
    return pd.DataFrame(
        {
            "p99_cut": gains["p99_cut"].median(),
            "mean_cut": gains["mean_cut"].median(),
            "p99_lower": gains["p99_cut"].agg(lambda cut: (cut > 0).sum()),
            "cells": gains["p99_cut"].size(),
            "p99_cut_favourable": gains["p99_cut_favourable"].median(),
            "used_over_b": spent["DiSCo"],
            "dropped": dropped["DiSCo"],
            "busy_disco": busy["DiSCo"],
            "busy_stoch": busy["Stoch"],
        }
    ).reset_index()
