"""Every policy on requests that it was not planned with: random halves of a record, one to plan and one to run.

The mean over many halves says what a plan does with other requests. Their spread is the uncertainty of the record:
with halves drawn without replacement it estimates the variance of a statistic of all n requests, also of a quantile
(the delete-d jackknife with d = n / 2; Shao and Wu, Annals of Statistics 17, 1989). Arrays have an entry per request.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import budgets as spending
from artifact.analysis import hedging
from disco_core.beyond.length_dependence import LengthDependence
from disco_core.beyond.optimal import plan_optimal
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

QUANTILE = 0.99
SERVER, DEVICE, DISCO, OPTIMAL, FLOOR = "server only", "device only", "DiSCo", "optimal", "clairvoyant"
POLICIES = (SERVER, DEVICE, "Stoch", "Stoch+", DISCO, OPTIMAL, "hedged request", "SingleR")
KEYS = 12  # lengths with an F of their own for the optimal plan; a length takes that of the next longer one
DEPENDENT = 0.01  # p below which F of the optimal plan depends on the prompt length


@dataclass(frozen=True, eq=False)
class Past:
    """Requests that plans are made from, with the device; what all budgets share is computed once."""

    prompt_tokens: Ints
    ttft_s: Floats
    device: DeviceProfile

    @cached_property
    def prompts(self) -> LengthDistribution:
        """Lengths of the prompts."""
        return LengthDistribution.of(self.prompt_tokens)

    @cached_property
    def ttft(self) -> TTFTDistribution:
        """F of all lengths together."""
        return TTFTDistribution(self.ttft_s)

    @cached_property
    def by_length(self) -> TTFTDistribution | dict[int, TTFTDistribution]:
        """F by length where TTFT depends on it, else that of all."""
        dependence = LengthDependence.fit(self.prompt_tokens, self.ttft_s)
        if dependence.p_value >= DEPENDENT:
            return self.ttft
        return dependence.ttft(np.quantile(self.prompt_tokens, np.arange(1, KEYS + 1) / KEYS, method="inverted_cdf"))

    def plans(self, budget: float, constraint: Constraint) -> dict[str, DispatchPlan]:
        """Every policy, in the order of `POLICIES`. With too few samples for P99 the optimal plan is DiSCo's."""
        given = self.prompts, self.ttft, self.device, budget, constraint
        found = spending.single() | spending.spending(budget, constraint, self.prompts, self.ttft)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[0-9]+ samples of TTFT", UserWarning)
            found[OPTIMAL] = plan_optimal(self.prompts, self.by_length, self.device, budget, constraint)
        found["hedged request"] = hedging.hedged_request(*given)
        found["SingleR"] = hedging.single_r(*given)
        return {name: found[name] for name in POLICIES}


def run(plan: DispatchPlan, prompt_tokens: Ints, ttft_s: Floats, device: DeviceProfile) -> dict[str, float]:
    """What a plan does with recorded requests: mean_s and p99_s of TTFT, server_share and device_share.

    Each request has its own recorded TTFT of the server; what a random plan chooses is weighted, not drawn.
    """
    entry = np.searchsorted(plan.prompt_tokens, np.minimum(prompt_tokens, plan.prompt_tokens[-1]))
    chance = plan.probability[entry]
    server_wait, device_wait = plan.delays_s[:, entry]
    server_s, device_s = server_wait + ttft_s[:, None], device_wait + device.ttft(prompt_tokens)[:, None]
    first_s = np.minimum(server_s, device_s)
    shares = [
        float(prompt_tokens @ (chance * began).sum(axis=1) / prompt_tokens.sum())
        for began in (server_wait < device_s, device_wait < server_s)
    ]
    order = np.argsort(first_s, axis=None)
    reached = np.cumsum((chance / ttft_s.size).ravel()[order])
    at = np.searchsorted(reached, QUANTILE - 1e-9)
    mean_s = float((np.where(chance > 0, first_s, 0.0) * chance).sum() / ttft_s.size)
    return {
        "mean_s": mean_s,
        "p99_s": float(first_s.ravel()[order][at]),
        "server_share": shares[0],
        "device_share": shares[1],
    }


def floor(
    budget: float, constraint: Constraint, prompt_tokens: Ints, ttft_s: Floats, device: DeviceProfile
) -> dict[str, float]:
    """The least mean_s and the least p99_s within the budget of two schedulers that know every TTFT in advance.

    As in `run` a request may have the constrained endpoint with a chance, so that no random plan is below either.
    """
    device_s = device.ttft(prompt_tokens)
    helper_s, other_s = (device_s, ttft_s) if constraint is Constraint.DEVICE else (ttft_s, device_s)
    allowed = budget * prompt_tokens.sum()
    saved_s = np.maximum(other_s - helper_s, 0.0)
    order = np.argsort(-saved_s / prompt_tokens, kind="stable")
    spent, gained = (np.append(0.0, np.cumsum(values[order])) for values in (prompt_tokens, saved_s))
    mean_s = (other_s.sum() - np.interp(allowed, spent, gained)) / other_s.size
    times = np.unique(np.append(ttft_s, device_s))
    low, high = 0, times.size - 1
    while low < high:
        middle = (low + high) // 2
        late = other_s > times[middle]
        need = late.sum() - (1 - QUANTILE) * late.size - 1e-9  # requests, the last of them in part
        helped = np.sort(prompt_tokens[late & (helper_s <= times[middle])])
        tokens = np.interp(need, np.arange(helped.size + 1), np.append(0, np.cumsum(helped)))
        within = need <= helped.size and tokens <= allowed * (1 + 1e-12)
        low, high = (low, middle) if within else (middle + 1, high)
    return {"mean_s": float(mean_s), "p99_s": float(times[low])}


def halves(
    prompt_tokens: Ints,
    ttft_s: Floats,
    device: DeviceProfile,
    budgets: Sequence[float],
    constraint: Constraint,
    count: int,
    seed: int,
) -> pd.DataFrame:
    """One row for each split, budget and policy: `run` of the half that the plan does not know, and the floor's."""
    rng, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for split in range(count):
        known, new = np.array_split(rng.permutation(ttft_s.size), 2)
        past, test = Past(prompt_tokens[known], ttft_s[known], device), (prompt_tokens[new], ttft_s[new], device)
        for b in budgets:
            keys = {"split": split, "b": b}
            for policy, plan in past.plans(b, constraint).items():
                rows.append(keys | {"policy": policy} | run(plan, *test))
            rows.append(keys | {"policy": FLOOR} | floor(b, constraint, *test))
    return pd.DataFrame(rows)


def banded(table: pd.DataFrame, values: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """For each key the mean over splits of every value, and its 95 % band as value_low and value_high."""
    found = table.groupby(list(keys), sort=False)[list(values)]
    parts = [found.mean()]
    for end, q in (("low", 0.025), ("high", 0.975)):
        parts.append(found.quantile(q).add_suffix(f"_{end}"))
    return pd.concat(parts, axis=1).reset_index()
