"""Hedged requests under a budget, as others have them: one delay for all prompts, whatever their length.

The endpoint that is not constrained starts at once; the constrained one starts after the delay, if no first token has
come by then, with a probability that keeps its expected share of prompt tokens within the budget.
"""

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.beyond.expectation import expected
from disco_core.checks import Floats
from disco_core.cost import Constraint, End
from disco_core.dispatch import NEVER, DispatchPlan
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

_DELAYS = 200  # that SingleR chooses from
_ROUNDING = 1e-12  # of probabilities


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
    lengths, q = LengthDistribution.of(prompt_tokens), checks.fraction(quantile, "quantile")
    checks.instance_of(constraint, Constraint, "constraint")
    levels = np.arange(1, _DELAYS + 1) / _DELAYS
    delays_s = np.unique(np.append(0.0, _first(lengths, ttft, device, constraint, levels)))
    reissues = _Reissues(lengths, ttft, device, checks.fraction(budget, "budget"), constraint, delays_s)
    times = reissues.times()
    low, high = 0, times.size - 1
    while low < high:  # the least time by which enough requests have their first token with one of the delays
        middle = (low + high) // 2
        within = reissues.late(times[middle]).min() <= 1 - q + _ROUNDING
        low, high = (low, middle) if within else (middle + 1, high)
    equal = reissues.late(times[low]) <= 1 - q + _ROUNDING
    best = int(np.argmin(np.where(equal, reissues.mean_s(), np.inf)))
    return _within("SingleR", float(delays_s[best]), lengths, ttft, device, budget, constraint)


class _Reissues:
    """All delays at once, each with the probability that spends the budget; arrays have shape (delays,)."""

    def __init__(
        self,
        lengths: LengthDistribution,
        ttft: TTFTDistribution,
        device: DeviceProfile,
        budget: float,
        constraint: Constraint,
        delays_s: Floats,
    ) -> None:
        self.ttft, self.delays_s, self.by_device = ttft, delays_s, constraint is Constraint.DEVICE
        self.chance, self.device_s = lengths.counts / lengths.counts.sum(), device.ttft(lengths.tokens)
        if self.by_device:
            share = ttft.sf(delays_s)
        else:
            share = (self.device_s > delays_s[:, None]) @ (self.chance * lengths.tokens / lengths.mean)
        self.part = np.divide(budget, share, out=np.ones_like(share), where=share > budget)

    def times(self) -> Floats:
        """Every time at which a first token can come, ascending."""
        first, second = np.unique(self.ttft.values_s), self.device_s
        if not self.by_device:
            first, second = second, first
        return np.unique(np.append(first, np.add.outer(self.delays_s, second)))

    def late(self, t: float) -> Floats:
        """`P(TTFT > t)`."""
        if self.by_device:
            alone, in_time = self.ttft.sf(t), (self.delays_s[:, None] + self.device_s <= t) @ self.chance
        else:
            alone, in_time = self.chance @ (self.device_s > t), self.ttft.cdf(t - self.delays_s)
        late: Floats = alone * (1.0 - self.part * in_time)
        return late

    def mean_s(self) -> Floats:
        """Mean TTFT in seconds."""
        if self.by_device:
            alone, both = self.ttft.mean, self.ttft.mean_min(self.delays_s[:, None] + self.device_s)
        else:
            alone, delay = self.chance @ self.device_s, np.minimum(self.delays_s[:, None], self.device_s)
            both = delay + self.ttft.mean_min(self.device_s - delay)
        mean: Floats = (1.0 - self.part) * alone + self.part * (both @ self.chance)
        return mean


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
