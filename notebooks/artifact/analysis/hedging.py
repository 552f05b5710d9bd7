"""Hedged requests under a budget, as others have them: one delay for all prompts, whatever their length.

The endpoint that is not constrained starts at once; the constrained one starts after the delay, if no first token has
come by then, with a probability that keeps its expected share of prompt tokens within the budget.
"""

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.beyond.optimal import expected
from disco_core.checks import Floats
from disco_core.cost import Constraint, End
from disco_core.dispatch import NEVER, DispatchPlan
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

_DELAYS = 200  # that SingleR chooses from


def hedged_request(
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: TTFTDistribution,
    device: DeviceProfile,
    budget: float,  # b
    constraint: Constraint,
    level: float = 0.95,
) -> DispatchPlan:
    """The hedged request of Dean and Barroso, The Tail at Scale (CACM 2013): the delay is a fixed quantile.

    level   of the TTFT of the endpoint that starts at once; 0.95 in the paper. Where that uses more than the budget,
            only a part of the requests is hedged, as a limit on the rate of hedged requests would have it
    """
    lengths = LengthDistribution.of(prompt_tokens)
    delay_s = float(_first(lengths, ttft, device, constraint, [checks.fraction(level, "level")])[0])
    return _within("hedged request", delay_s, lengths, ttft, device, budget, constraint)


def single_r(
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: TTFTDistribution,
    device: DeviceProfile,
    budget: float,  # b
    constraint: Constraint,
    quantile: float = 0.99,
) -> DispatchPlan:
    """SingleR of Kaler, He and Elnikety, Optimal Reissue Policies for Reducing Tail Latency (SPAA 2017).

    Of all delays, each with the probability that spends the budget, the one with the least quantile of TTFT; of equal
    ones, the one with the least mean.
    """
    lengths = LengthDistribution.of(prompt_tokens)
    levels = np.arange(1, _DELAYS + 1) / _DELAYS
    delays_s = np.unique(np.append(0.0, _first(lengths, ttft, device, constraint, levels)))
    plans = [_within("SingleR", float(d), lengths, ttft, device, budget, constraint) for d in delays_s]
    found = [expected(plan, lengths, ttft, device) for plan in plans]
    best = min(range(len(plans)), key=lambda i: (found[i].quantile(quantile), found[i].mean_s))
    return plans[best]


def _first(
    lengths: LengthDistribution,
    ttft: TTFTDistribution,
    device: DeviceProfile,
    constraint: Constraint,
    levels: ArrayLike,
) -> Floats:
    """Quantiles of the TTFT of the endpoint that starts at once, over all requests."""
    if constraint is Constraint.DEVICE:
        return ttft.quantile(levels)
    up_to = np.cumsum(lengths.counts) / lengths.counts.sum()
    return device.ttft(lengths.tokens[np.searchsorted(up_to, np.asarray(levels) - 1e-12)])


def _within(
    name: str,
    delay_s: float,
    lengths: LengthDistribution,
    ttft: TTFTDistribution,
    device: DeviceProfile,
    budget: float,
    constraint: Constraint,
) -> DispatchPlan:
    """The plan with this delay and the largest probability that keeps within the budget."""
    b = checks.fraction(budget, "budget")
    delays_s = np.zeros((len(End), 1, 2))
    delays_s[checks.instance_of(constraint, Constraint, "constraint").end] = [delay_s, NEVER]
    always = DispatchPlan(name, np.ones(1, np.int64), delays_s, np.array([[1.0, 0.0]]), constraint, b)
    share = float(expected(always, lengths, ttft, device).shares[constraint.end])
    part = b / share if share > b else 1.0
    return DispatchPlan(name, np.ones(1, np.int64), delays_s, np.array([[part, 1.0 - part]]), constraint, b)
