"""TTFT of every policy under a budget, simulated on the services' traces and on bootstrap replicates of them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import scenario
from artifact.analysis.bootstrap import intervals
from artifact.analysis.sweep import sweep
from artifact.data import traces
from disco_core import checks
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import (
    DispatchPlan,
    plan_device_only,
    plan_disco,
    plan_server_only,
    plan_stochastic,
)
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.simulate import Result, simulate
from disco_core.workload import LengthDistribution, Workload

STOCH = (  # for captions
    "Stoch: random dispatch, which sends a request to the constrained endpoint with probability b, otherwise to the "
    "other one. Stoch+: the other one always starts, the constrained one as well with probability b."
)
PAIR = ("service", "device", "constrained")  # what the paper calls a pair, and which endpoint is constrained
# quantiles that show a distribution: every 5 %, and more of both tails
LEVELS = (0.01, 0.02, *(k / 20 for k in range(1, 19)), 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)


def single() -> dict[str, DispatchPlan]:
    """The two policies that use one endpoint only and so spend no budget."""
    return {"server only": plan_server_only(), "device only": plan_device_only()}


def spending(
    budget: float, constraint: Constraint, prompts: LengthDistribution, ttft: TTFTDistribution, tail: float = 0.05
) -> dict[str, DispatchPlan]:
    """The three policies that spend a budget, planned for one F: DiSCo, and random dispatch in both readings."""
    return {
        "DiSCo": plan_disco(constraint, prompts, ttft, budget, tail=tail),
        "Stoch": plan_stochastic(budget, constraint),
        "Stoch+": plan_stochastic(budget, constraint, both=True),
    }


def cut_table(runs: pd.DataFrame, value: str) -> pd.DataFrame:
    """DiSCo's cut of a value for each pair, against both readings of Stoch, with its bootstrap interval.

    Returns PAIR, stoch_cut and stoch_plus_cut in percent and, with replicates, each with _low and _high.
    """
    stoch, stoch_plus = (
        intervals(cuts(runs, value, policy), PAIR, ["cut"]).set_index(list(PAIR)) for policy in ("Stoch", "Stoch+")
    )
    return stoch.add_prefix("stoch_").join(stoch_plus.add_prefix("stoch_plus_")).reset_index()


def below(points: pd.DataFrame, value: str) -> dict[str, str]:
    """At how many points DiSCo's value is below that of each reading of Stoch, in words, such as "105 of 108"."""
    wide = points[points["b"].notna()].pivot(index=[*PAIR, "b"], columns="policy", values=value)
    return {other: f"{(wide['DiSCo'] < wide[other]).sum()} of {len(wide)}" for other in ("Stoch", "Stoch+")}


def cuts(runs: pd.DataFrame, value: str, against: str) -> pd.DataFrame:
    """DiSCo's cut of a policy's value in percent, for each pair and replicate, averaged over the budgets."""
    spent = runs[runs["b"].notna()]
    wide = spent.pivot(index=[*PAIR, "replicate", "b"], columns="policy", values=value)
    cut = 100 * (1 - wide["DiSCo"] / wide[against])
    return cut.groupby([*PAIR, "replicate"], sort=False).mean().rename("cut").reset_index()


@dataclass(frozen=True)
class BudgetStudy:
    """What is simulated: every policy at every budget, for each device and each constrained endpoint.

    prompts      prompt lengths, which are drawn and for which the policies plan
    devices      by name
    budgets      b, shares of all prompt tokens
    requests     drawn for each point; a bootstrap replicate draws at most `redrawn`
    tail         alpha of DiSCo-D
    seed         of every draw; all policies see the same requests and the same server TTFTs
    """

    prompts: LengthDistribution
    devices: Mapping[str, DeviceProfile]
    budgets: Sequence[float] | Floats
    requests: int
    redrawn: int
    tail: float = 0.05
    seed: int = 0
    constraints: Sequence[Constraint] = tuple(Constraint)

    def __post_init__(self) -> None:
        checks.count(self.requests, "requests")
        checks.count(self.redrawn, "redrawn")
        checks.fraction(self.tail, "tail")
        checks.number(self.seed, "seed")

    def run(self, services: Mapping[str, traces.Service], replicates: int = 0) -> pd.DataFrame:
        """The rows of every service's trace, replicate 0, and of `replicates` bootstrap draws of it."""
        if replicates != 0:
            checks.count(replicates, "replicates")
        resampled = np.random.SeedSequence(self.seed).spawn(4)[-1]
        cells = traces.replicates(services, replicates, np.random.default_rng(resampled))
        return sweep(self.rows, list(cells))

    def rows(self, service: str, replicate: int, ttft: TTFTDistribution) -> Iterator[dict[str, Any]]:
        """Mean TTFT, P99 TTFT and the share of the budget used on one F, a row for each point and policy."""
        drawn = self._draw(ttft, replicate)
        for constraint, b in itertools.product(self.constraints, (np.nan, *self.budgets)):
            plans = self.plans(b, constraint, ttft)
            for (name, device), (policy, plan) in itertools.product(self.devices.items(), plans.items()):
                result = drawn.race(plan, device)
                p99 = np.quantile(result.ttft_s, 0.99, method="inverted_cdf")
                keys = {"service": service, "constrained": constraint.value, "replicate": replicate}
                keys |= {"device": name, "b": b, "policy": policy}
                yield keys | {"mean_s": result.ttft_s.mean(), "p99_s": p99, "used": result.budget_used}

    def quantiles(self, service: traces.Service, device: str, constraint: Constraint, b: float) -> pd.DataFrame:
        """The distribution of TTFT at one budget, for every policy: a row with ttft_s for each of `LEVELS`."""
        drawn = self._draw(service.ttft)
        plans = self.plans(b, constraint, service.ttft) | single()
        ttft_s = {policy: drawn.race(plan, self.devices[device]).ttft_s for policy, plan in plans.items()}
        keys = {"service": service.name, "device": device, "constrained": constraint.value, "b": b}
        return pd.concat(
            [
                pd.DataFrame(
                    {"policy": policy, "level": LEVELS, "ttft_s": np.quantile(values, LEVELS, method="inverted_cdf")}
                ).assign(**keys)
                for policy, values in ttft_s.items()
            ],
            ignore_index=True,
        )

    def plans(self, b: float, constraint: Constraint, ttft: TTFTDistribution) -> dict[str, DispatchPlan]:
        """The policies that spend a budget b; for NaN those without a budget."""
        return single() if np.isnan(b) else spending(b, constraint, self.prompts, ttft, self.tail)

    def _draw(self, ttft: TTFTDistribution, replicate: int = 0) -> "_Drawn":
        # seeds for each of: the requests, the server's TTFTs, what a random plan chooses
        requests, served, planned = traces.streams(self.seed, replicate, 3)
        n = min(self.requests, self.redrawn) if replicate else self.requests
        # output lengths do not change TTFT
        load = Workload.sample(n, self.prompts, self.prompts, np.random.default_rng(requests))
        return _Drawn(load, ttft, ttft.sample(n, np.random.default_rng(served)), planned)


@dataclass(frozen=True)
class _Drawn:
    """Requests and server TTFTs that were drawn once, for all policies."""

    load: Workload
    ttft: TTFTDistribution
    ttft_s: Floats
    seed: np.random.SeedSequence

    def race(self, plan: DispatchPlan, device: DeviceProfile) -> Result:
        rng = np.random.default_rng(self.seed)
        return simulate(self.load, plan, scenario.server(self.ttft), device, ttft_s=self.ttft_s, rng=rng)
