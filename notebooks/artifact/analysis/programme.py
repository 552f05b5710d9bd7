"""The best dispatch plan once more, as a linear programme that SciPy's HiGHS solves: a check for small cases.

Nothing is used of what makes `disco_core.beyond.optimal` fast: every mixture of every wait is allowed for every
length, and what becomes of each length, wait and server TTFT is enumerated from the definition of the race.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog

from disco_core.beyond.optimal import solve
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import NEVER, DispatchPlan, plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

_ROUNDING = 1e-9  # by which the programme may exceed its limits: what is met exactly is met
_EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class Case:
    """A small problem: `samples_s` of server TTFT, equally likely, and what `solve` is asked for."""

    prompts: LengthDistribution
    samples_s: Floats
    device: DeviceProfile
    budget: float
    constraint: Constraint
    quantile: float
    growth: float


class Programme:
    """All plans of a case: the variables are the probabilities that a prompt of each length takes each wait.

    The constrained endpoint waits for 0 s, for a TTFT of the other one, or for ever. Arrays have shape (lengths,
    waits).
    """

    def __init__(self, case: Case) -> None:
        prompts, self.case = case.prompts, case
        self.chance = prompts.counts / prompts.counts.sum()
        self.load = prompts.tokens / prompts.mean
        device_s = case.device.ttft(prompts.tokens)
        other_s = case.samples_s if case.constraint is Constraint.DEVICE else device_s
        self.waits_s = np.unique(np.concatenate([[0.0, NEVER], other_s]))
        server, device = case.samples_s[None, None, :], device_s[:, None, None]
        wait = self.waits_s[None, :, None]
        if case.constraint is Constraint.DEVICE:
            self.first_s, started = np.minimum(server, wait + device), wait < server
        else:
            self.first_s, started = np.minimum(wait + server, device), wait < device
        self.first_s, started = np.broadcast_arrays(self.first_s, started)
        self.mean_s, self.started = self.first_s.mean(axis=2), started.mean(axis=2)

    def least_mean(self, t: float) -> float:
        """The least mean TTFT in seconds with `P(TTFT > t) <= 1 - q`, within the budget; inf if there is none."""
        lengths, waits = self.mean_s.shape
        weight = self.chance[:, None]
        limits = [self.case.budget + _ROUNDING, 1 - self.case.quantile + _ROUNDING]
        rows = [weight * self.load[:, None] * self.started, weight * (self.first_s > t).mean(axis=2)]
        found = linprog(
            (weight * self.mean_s).ravel(),
            A_ub=[row.ravel() for row in rows],
            b_ub=limits,
            A_eq=np.kron(np.eye(lengths), np.ones(waits)),
            b_eq=np.ones(lengths),
            method="highs",
            options=_EXACT,
        )
        return float(found.fun) if found.status == 0 else float("inf")

    def least_deadline(self, limit_s: float) -> float:
        """The least t in seconds of a plan within the budget whose mean is at most `limit_s`."""
        times = np.unique(self.first_s)
        low, high = 0, times.size - 1
        while low < high:
            middle = (low + high) // 2
            mean_s = self.least_mean(times[middle])
            within = mean_s < np.inf and mean_s <= limit_s * (1 + _ROUNDING)
            low, high = (low, middle) if within else (middle + 1, high)
        return float(times[low])

    def mean_of(self, plan: DispatchPlan) -> float:
        """Mean TTFT in seconds of a plan whose waits are among the programme's, or as good as never."""
        entry = np.searchsorted(plan.prompt_tokens, np.minimum(self.case.prompts.tokens, plan.prompt_tokens[-1]))
        waits_s = plan.delays_s[self.case.constraint.end][entry]
        at = np.minimum(np.searchsorted(self.waits_s, waits_s), self.waits_s.size - 1)
        return float(
            self.chance @ (plan.probability[entry] * np.take_along_axis(self.mean_s, at, axis=1)).sum(axis=1)
        )


def cases(count: int, seed: int) -> Iterator[tuple[Case, bool]]:
    """Random small cases, half of each constraint, and whether TTFTs repeat, since they are tenths of seconds.

    Up to 6 lengths of 5 to 60 tokens, 10 to 16 samples of TTFT, devices of 30 to 200 tokens/s.
    """
    rng = np.random.default_rng(seed)
    for k in range(count):
        repeat = k % 4 >= 2
        size = int(rng.integers(10, 17))
        samples_s = rng.integers(1, 9, size) / 10 if repeat else rng.lognormal(-1.0, 1.0, size)
        prompts = LengthDistribution.of(rng.integers(5, 61, int(rng.integers(1, 7))))
        device = DeviceProfile(float(rng.integers(30, 201)), 10.0, float(rng.choice([0.0, 0.1])))
        budget, growth = float(rng.choice([0.0, 1.0, *rng.random(8)])), float(rng.choice([0.0, 0.01, 0.1, np.inf]))
        yield (
            Case(
                prompts, samples_s, device, budget, (*Constraint,)[k % 2], float(rng.choice([0.5, 0.8, 0.9])), growth
            ),
            repeat,
        )


def compared(case: Case) -> dict[str, Any]:
    """The plan of `solve` beside what the programme finds, both times in seconds.

    Returns deadline_s and mean_s of the plan; least_deadline_s, of all plans with the mean that is allowed; and
    least_mean_s, of all plans with the plan's deadline.
    """
    ttft, programme = TTFTDistribution(case.samples_s), Programme(case)
    found = solve(
        case.prompts,
        ttft,
        case.device,
        case.budget,
        case.constraint,
        quantile=case.quantile,
        growth=case.growth,
    )
    disco = plan_disco(case.constraint, case.prompts, ttft, case.budget)
    limit_s = programme.mean_of(disco) * (1 + case.growth)
    return {
        "deadline_s": found.deadline_s,
        "least_deadline_s": programme.least_deadline(limit_s),
        "mean_s": found.mean_s,
        "least_mean_s": programme.least_mean(found.deadline_s * (1 + 1e-12)),
    }
