"""The plan with the least quantile of TTFT within the budget, with its certificate."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.beyond.expectation import ByLength, Expected, Parts, expected, parts_of
from disco_core.beyond.optimal.dual import ROUNDING, Optimum, Priced, least_deadline, optimum
from disco_core.beyond.optimal.options import LENGTHS, PASSES, DeviceOptions, Lengths, Options, ServerOptions
from disco_core.cost import Constraint, End
from disco_core.dispatch import NEVER, DispatchPlan, plan_disco
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution


@dataclass(frozen=True, eq=False)
class Solution:
    """The best plan and its certificate; all numbers are expectations over the F and the lengths given.

    plan       a `DispatchPlan`
    binds      what keeps the plan from being better: those of "budget", "deadline" and "growth" that do
    fallback   why the plan is DiSCo's instead, without a bound; "" if it is not
    """

    plan: DispatchPlan
    binds: tuple[str, ...]
    fallback: str
    _expected: Expected
    _q: float
    _options: Options | None = None
    _best: Optimum | None = None

    @property
    def mean_s(self) -> float:
        """Mean TTFT in seconds."""
        return self._expected.mean_s

    @cached_property
    def deadline_s(self) -> float:
        """The least t in seconds with `P(TTFT > t) <= 1 - quantile`."""
        return self._expected.quantile(self._q)

    @property
    def share(self) -> float:
        """Share of prompt tokens for which the constrained endpoint starts."""
        assert self.plan.constraint is not None
        return float(self._expected.shares[self.plan.constraint.end])

    @cached_property
    def bound_s(self) -> float:
        """No plan that meets this deadline within the budget has a mean below this; NaN for DiSCo's plan.

        Where F has too many sample points to consider all, what is left out is bounded too.
        """
        if self._options is None or self._best is None:
            return float("nan")
        return optimum(self._options.relaxed(), 1 - self._q, self.plan.budget, self._best.t).bound_s

    @property
    def gap_s(self) -> float:
        """Seconds that the mean may be above the least possible one: rounding, and the waits that were left out."""
        return self.mean_s - self.bound_s


def plan_optimal(
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: "TTFTDistribution | ByLength",
    device: DeviceProfile,
    budget: float,  # b
    constraint: Constraint,
    *,
    quantile: float = 0.99,
    growth: float = 0.01,
    deadline_s: float | None = None,
) -> DispatchPlan:
    """The best plan within the budget: by default the least P99 of TTFT with a mean at most 1 % above DiSCo's.

    `disco_core.beyond.optimal.solve`, with the same parameters, says what they are and returns the proof as well.
    """
    found = solve(
        prompt_tokens, ttft, device, budget, constraint, quantile=quantile, growth=growth, deadline_s=deadline_s
    )
    return found.plan


def solve(
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: "TTFTDistribution | ByLength",
    device: DeviceProfile,
    budget: float,  # b
    constraint: Constraint,
    *,
    quantile: float = 0.99,
    growth: float = 0.01,
    deadline_s: float | None = None,
) -> Solution:
    """The plan with the least quantile of TTFT within the budget, and of those the one with the least mean.

    prompt_tokens   observed lengths, shape (n,), or their histogram
    ttft            F, or one for each length (`LengthDependence.ttft`): a length takes the entry of the next longer
                    key, or of the longest
    quantile        q in [0, 1), of the deadline t: `P(TTFT > t) <= 1 - q`. The plan fits the samples of F exactly; to
                    hold a P99 on later requests, whose tail may be longer, a somewhat higher q such as 0.992 is safer
    growth          by how much the mean may exceed that of DiSCo's plan, relative to it; a negative one asks for a
                    lower mean, `inf` for the least t whatever the mean
    deadline_s      t, for the plan of the least mean with this deadline; growth is then ignored; `inf` for the least
                    mean of all

    Of more than some 200 sample points or lengths not all are considered; `gap_s` bounds what that costs.
    With fewer than `1 / (1 - q)` samples the plan is DiSCo's, with a warning, since they do not tell the quantile;
    with fewer than about 300 the share on later requests may exceed the budget by .01.
    InputError for limits that no plan keeps to; it names the least value that one does.
    """
    q, b = checks.fraction(quantile, "quantile"), checks.fraction(budget, "budget")
    if q == 1:
        raise InputError("quantile must be below 1: no sample tells a time that is never exceeded")
    name, limit = ("growth", growth) if deadline_s is None else ("deadline_s", deadline_s)
    if not (isinstance(limit, float) and limit == np.inf):
        limit = checks.number(limit, name, -1.0 if deadline_s is None else 0.0)
    checks.instance_of(constraint, Constraint, "constraint"), checks.instance_of(device, DeviceProfile, "device")
    observed = LengthDistribution.of(prompt_tokens)
    # lengths that each have their F are all told apart
    lengths = Lengths.of(observed, observed.tokens.size if isinstance(ttft, Mapping) else LENGTHS[constraint])
    parts = parts_of(ttft, lengths.tokens)
    disco = plan_disco(constraint, observed, _pooled(parts, lengths), b)
    of_disco = expected(disco, observed, ttft, device)
    samples, fewest = min(part.values_s.size for part, _ in parts), int(np.ceil(1 / (1 - q) - 1e-9))
    if samples < fewest and deadline_s != np.inf:
        few = "sample" if samples == 1 else "samples"
        where = " for a length" if isinstance(ttft, Mapping) else ""
        reason = f"{samples} {few} of TTFT{where} do not tell its quantile {q:g}, which takes {fewest}"
        reason += ": the plan is DiSCo's"
        warnings.warn(reason, stacklevel=2)
        return Solution(disco, (), reason, of_disco, q)
    options: Options = (DeviceOptions if constraint is Constraint.DEVICE else ServerOptions)(lengths, parts, device)
    for left in range(PASSES, -1, -1):
        final, t = not (left and options.thinned), least_deadline(options, 1 - q, b)
        if deadline_s is not None:
            best = _by_deadline(options, q, b, t, limit, final=final)
        else:
            best = _by_growth(options, q, b, t, of_disco.mean_s, limit, final=final)
        if final:
            break
        options = options.refined(best.choices, best.probability)
    grew = deadline_s is None and best.t > t * (1 + 1e-9)
    binding = {"budget": best.spent and b < 1, "deadline": best.forced, "growth": grew}
    plan = _plan(options, best, constraint, b)
    binds = tuple(name for name, holds in binding.items() if holds)
    found = Solution(plan, binds, "", expected(plan, observed, ttft, device), q, options, best)
    together = lengths.tokens.size < observed.tokens.size
    if together and deadline_s is None and growth >= 0 and found.deadline_s > of_disco.quantile(q):
        reason = f"{observed.tokens.size} lengths are too many to tell all apart, and DiSCo's plan is better"
        return Solution(disco, (), reason, of_disco, q)
    return found


def _by_growth(
    options: Options, q: float, b: float, t: float, mean_s: float, growth: float, *, final: bool
) -> Optimum:
    """The least deadline from t on for means of up to `1 + growth` times DiSCo's.

    Where there is none, the plan of the least mean, unless these options are final.
    """
    limit_s = mean_s * (1 + growth) if growth < np.inf else np.inf  # a mean of 0 may grow too
    best = optimum(options, 1 - q, b, t, limit_s)
    if best.bound_s <= limit_s * (1 + ROUNDING):
        return best
    if growth < 0 and final:
        raise InputError(
            f"growth {growth:g} asks for a mean TTFT of {limit_s:.6g} s, which no plan has with a budget of {b:g}: "
            f"the least feasible is {_up(best.bound_s)} s, a growth of {_up(best.bound_s / mean_s - 1)}"
        )
    # DiSCo's mean is below the least one here because some waits are left out
    return optimum(options, 1 - q, b, t, best.bound_s * (1 + 1e3 * ROUNDING))


def _by_deadline(options: Options, q: float, b: float, t: float, deadline_s: float, *, final: bool) -> Optimum:
    """The least mean for this deadline; t is the least that the budget is enough for."""
    if deadline_s < t * (1 - 1e-8) and final:
        needed = Priced(options, 1 - q, 1.0, seconds=0.0).total(deadline_s)
        other = f"; the least budget for this deadline is {_up(needed)}" if needed <= 1 else ""
        raise InputError(
            f"deadline_s {deadline_s:g} cannot be met by {q:g} of the requests with a budget of {b:g}: "
            f"the least feasible is {_up(t)} s{other}"
        )
    return optimum(options, 1 - q, b, max(deadline_s, t))


def _up(value: float) -> str:
    """A value in six digits, rounded so that it is feasible if the value is."""
    text = f"{value:.6g}"
    return text if float(text) >= value - 5e-9 * abs(value) else f"{value + 5e-6 * abs(value):.6g}"


def _plan(options: Options, best: Optimum, constraint: Constraint, b: float) -> DispatchPlan:
    delays_s = np.zeros((len(End), *best.choices.shape))
    # with a budget of 0 the device never starts, not even at a TTFT beyond the longest sample
    delays_s[constraint.end] = np.take_along_axis(options.delays_s, best.choices, axis=1) if b > 0 else NEVER
    name = f"optimal-{constraint.name[0]}"
    return DispatchPlan(name, options.lengths.tokens, delays_s, best.probability, constraint, b)


def _pooled(parts: Parts, lengths: Lengths) -> TTFTDistribution:
    """F of all lengths together."""
    if len(parts) == 1:
        return parts[0][0]
    return TTFTDistribution.mixture([part for part, _ in parts], [lengths.chance[rows].sum() for _, rows in parts])
