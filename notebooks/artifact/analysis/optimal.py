"""The best dispatch plan beside the paper's rules, other policies and a scheduler that knows every TTFT in advance.

Everything is an expectation over an empirical F and a histogram of lengths, computed from the plans, without draws.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import budgets as spending
from artifact.analysis import hedging
from artifact.analysis.sweep import sweep
from artifact.data import traces
from disco_core import checks
from disco_core.beyond.expectation import expected
from disco_core.beyond.optimal import solve
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_disco, plan_server_only
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

PAIR = spending.PAIR
QUANTILE = 0.99
DISCO, OPTIMAL, GUARDED = "DiSCo", "optimal", "optimal, guarded"
GUARD = 0.993  # quantile that the guarded plan is made for: a later P99 is rarely beyond it
POLICIES = (DISCO, OPTIMAL, GUARDED, "SingleR", "hedged request", "Stoch", "Stoch+")
FLOOR = "clairvoyant"  # of the mean and of P99: two schedulers, each with all of the budget
LIMITS = ("budget", "deadline", "growth")  # what can keep a plan from being better


def evaluate(
    plan: DispatchPlan, prompts: LengthDistribution, ttft: TTFTDistribution, device: DeviceProfile
) -> dict[str, float]:
    """What a plan brings on these lengths and this F: mean_s and p99_s of TTFT, and `used`, the share of the
    constrained endpoint, NaN without one.
    """
    found = expected(plan, prompts, ttft, device)
    used = float("nan") if plan.constraint is None else float(found.shares[plan.constraint.end])
    return {"mean_s": found.mean_s, "p99_s": found.quantile(QUANTILE), "used": used}


def policies(
    budget: float,
    constraint: Constraint,
    prompts: LengthDistribution,
    ttft: TTFTDistribution,
    device: DeviceProfile,
) -> dict[str, DispatchPlan]:
    """Every policy that is compared, in the order of POLICIES, planned for these lengths, F and device.

    With too few samples for its quantile an optimal plan is DiSCo's.
    """
    plans = spending.spending(budget, constraint, prompts, ttft)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ samples of TTFT do not tell", UserWarning)
        for name, quantile in ((OPTIMAL, QUANTILE), (GUARDED, GUARD)):
            plans[name] = solve(prompts, ttft, device, budget, constraint, quantile=quantile).plan
    plans["SingleR"] = hedging.single_r(prompts, ttft, device, budget, constraint)
    plans["hedged request"] = hedging.hedged_request(prompts, ttft, device, budget, constraint)
    return {name: plans[name] for name in POLICIES}


def floor_mean(
    prompts: LengthDistribution,
    ttft: TTFTDistribution,
    device: DeviceProfile,
    budgets: Sequence[float] | Floats,
    constraint: Constraint,
) -> Floats:
    """The least mean TTFT in seconds of any scheduler within each budget, shape (budgets,).

    It knows each server TTFT in advance, and starts the constrained endpoint where that saves most time per prompt
    token: a fractional knapsack over all pairs of a length and a server TTFT.
    """
    chance, atom = prompts.counts / prompts.counts.sum(), np.diff(ttft.cumulative, prepend=0.0)
    server_s, device_s = np.broadcast_arrays(ttft.values_s, device.ttft(prompts.tokens)[:, None])
    other_s = server_s if constraint is Constraint.DEVICE else device_s
    saved_s = np.maximum(other_s - np.minimum(server_s, device_s), 0.0)
    mass = np.outer(chance, atom)
    order = np.argsort(-(saved_s / prompts.tokens[:, None]), axis=None, kind="stable")
    cost = np.append(0.0, np.cumsum((mass * (prompts.tokens / prompts.mean)[:, None]).ravel()[order]))
    gain_s = np.append(0.0, np.cumsum((mass * saved_s).ravel()[order]))
    spent = np.array([checks.fraction(b, "a budget") for b in budgets])
    least_s: Floats = float((mass * other_s).sum()) - np.interp(spent, cost, gain_s)
    return least_s


def floor_p99(
    prompts: LengthDistribution,
    ttft: TTFTDistribution,
    device: DeviceProfile,
    budget: float,
    constraint: Constraint,
) -> float:
    """The least P99 of TTFT in seconds of any scheduler within the budget that knows each server TTFT in advance.

    For a deadline t it starts the constrained endpoint only where the other one is later than t and itself in time,
    for the shortest prompts, until at most 1 % of the requests are late.
    """
    b, chance = checks.fraction(budget, "budget"), prompts.counts / prompts.counts.sum()
    device_s = device.ttft(prompts.tokens)

    def within(t: float) -> bool:
        slow, fast = np.full(chance.shape, float(ttft.sf(t))), device_s <= t
        if constraint is Constraint.SERVER:
            slow, fast = (device_s > t).astype(float), np.full(chance.shape, float(ttft.cdf(t)))
        helped = np.cumsum(chance * slow * fast)
        need = chance @ slow - (1 - QUANTILE) - 1e-12
        if need <= 0:
            return True
        if helped[-1] < need:
            return False
        added = np.diff(np.minimum(helped, need), prepend=0.0)
        return float(added @ prompts.tokens / prompts.mean) <= b + 1e-12

    times = np.unique(np.append(ttft.values_s, device_s))
    low, high = 0, times.size - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(times[middle]) else (middle + 1, high)
    return float(times[low])


@dataclass(frozen=True)
class OptimalStudy:
    """Every policy, planned and evaluated on the same F: what a plan reaches that knows F.

    prompts   prompt lengths
    devices   by name
    budgets   b, shares of all prompt tokens
    """

    prompts: LengthDistribution
    devices: Mapping[str, DeviceProfile]
    budgets: Sequence[float] | Floats
    constraints: Sequence[Constraint] = tuple(Constraint)

    def run(self, services: Mapping[str, traces.Service]) -> pd.DataFrame:
        """A row for each service, device, constraint, budget and policy, and for FLOOR: mean_s, p99_s and used."""
        return sweep(self.rows, [{"service": one} for one in services.values()])

    def rows(self, service: traces.Service) -> Iterator[dict[str, Any]]:
        """The rows of one service."""
        for constraint, (name, device) in itertools.product(self.constraints, self.devices.items()):
            floor_s = floor_mean(self.prompts, service.ttft, device, self.budgets, constraint)
            for b, mean_s in zip(self.budgets, floor_s, strict=True):
                keys = {"service": service.name, "device": name, "constrained": constraint.value, "b": b}
                for policy, plan in policies(b, constraint, self.prompts, service.ttft, device).items():
                    yield keys | {"policy": policy} | evaluate(plan, self.prompts, service.ttft, device)
                p99_s = floor_p99(self.prompts, service.ttft, device, b, constraint)
                yield keys | {"policy": FLOOR, "mean_s": mean_s, "p99_s": p99_s, "used": b}

    def gaps(self, services: Mapping[str, traces.Service]) -> pd.DataFrame:
        """How far DiSCo's rules are from the least mean within the share that they use.

        Returns service, device, constrained, b; alone_s, mean TTFT of the endpoint that is not constrained; disco_s
        and least_s; missed, the part in percent of the cut of alone_s that is possible and DiSCo does not reach, 0
        where nothing is possible.
        """
        rows = []
        cells = itertools.product(services.values(), self.constraints, self.devices.items(), self.budgets)
        for service, constraint, (name, device), b in cells:
            disco = evaluate(
                plan_disco(constraint, self.prompts, service.ttft, b), self.prompts, service.ttft, device
            )
            share = min(disco["used"], 1.0)  # rounding may exceed it
            least = solve(self.prompts, service.ttft, device, share, constraint, deadline_s=np.inf)
            alone_s = _alone(constraint, self.prompts, service.ttft, device)
            possible, cut = alone_s - least.mean_s, alone_s - disco["mean_s"]
            keys = {"service": service.name, "device": name, "constrained": constraint.value, "b": b}
            missed = 100 * (1 - cut / possible) if possible > 1e-9 * alone_s else 0.0
            rows.append(
                keys | {"alone_s": alone_s, "disco_s": disco["mean_s"], "least_s": least.mean_s, "missed": missed}
            )
        return pd.DataFrame(rows)

    def certificates(self, services: Mapping[str, traces.Service]) -> pd.DataFrame:
        """The certificate of the optimal plan of every cell: service, device, constrained, b; mean_s, bound_s, gap in
        percent of the mean; p99_s and share; and for each of LIMITS whether it binds.
        """
        rows = []
        cells = itertools.product(services.values(), self.constraints, self.devices.items(), self.budgets)
        for service, constraint, (name, device), b in cells:
            found = solve(self.prompts, service.ttft, device, b, constraint)
            keys = {"service": service.name, "device": name, "constrained": constraint.value, "b": b}
            numbers = {"mean_s": found.mean_s, "bound_s": found.bound_s, "gap": 100 * found.gap_s / found.mean_s}
            numbers |= {"p99_s": found.deadline_s, "share": found.share}
            rows.append(keys | numbers | {limit: limit in found.binds for limit in LIMITS})
        return pd.DataFrame(rows)

    def frontier(
        self, service: traces.Service, device: str, constraint: Constraint, growths: Iterable[float]
    ) -> pd.DataFrame:
        """The least P99 for each growth of the mean over the least one, at every budget, beside DiSCo's rule.

        growths   in percent of the least mean with the same budget
        Returns b, policy, growth, mean_s, p99_s.
        """
        rows, phone = [], self.devices[device]
        for b in self.budgets:
            disco = plan_disco(constraint, self.prompts, service.ttft, b)
            at = evaluate(disco, self.prompts, service.ttft, phone)
            rows.append({"b": b, "policy": DISCO, "growth": np.nan, "mean_s": at["mean_s"], "p99_s": at["p99_s"]})
            least = solve(self.prompts, service.ttft, phone, b, constraint, deadline_s=np.inf).mean_s
            for growth in growths:
                over = least * (1 + growth / 100) / at["mean_s"] - 1
                found = solve(self.prompts, service.ttft, phone, b, constraint, growth=over + 1e-9)
                point = {"mean_s": found.mean_s, "p99_s": found.deadline_s}
                rows.append({"b": b, "policy": OPTIMAL, "growth": growth} | point)
        return pd.DataFrame(rows)


def _alone(
    constraint: Constraint, prompts: LengthDistribution, ttft: TTFTDistribution, device: DeviceProfile
) -> float:
    """Mean TTFT in seconds without the constrained endpoint."""
    if constraint is Constraint.DEVICE:
        return expected(plan_server_only(), prompts, ttft, device).mean_s
    return float(prompts.counts @ device.ttft(prompts.tokens) / prompts.counts.sum())


def way(runs: pd.DataFrame, value: str) -> pd.Series:
    """How much of the way from DiSCo to the clairvoyant scheduler each policy goes, in percent.

    runs    rows of `OptimalStudy.run`; averaged over the budgets of each pair before they are compared
    Returns the median over the pairs in which that scheduler is better than DiSCo, by constrained and policy; it is
    negative where a policy is behind DiSCo.
    """
    wide = runs.groupby([*PAIR, "policy"], sort=False)[value].mean().unstack("policy")
    possible = wide[DISCO] - wide[FLOOR]
    possible = possible.where(possible > 1e-6 * wide[DISCO])
    gone = wide.drop(columns=[DISCO, FLOOR]).rsub(wide[DISCO], axis=0).div(possible, axis=0)
    return (100 * gone).groupby("constrained").median().stack().rename(value)
