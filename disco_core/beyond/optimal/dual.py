"""The linear programme over the probability of each choice for each length, solved by its dual.

At a price in seconds per unit of the share, every length has a best choice, and a best one among those that meet the
deadline. Where too many requests would miss it, the lengths are made to meet it that lose least by that; with the
device constrained and one F for all lengths, these are the shortest. Mean plus price times share, less the price of
the budget, is then a lower bound on the mean of every plan, whatever the price. It is concave and piecewise linear in
the price, so intersections of its lines lead to its maximum in a few steps. There, a plan that spends more than the
budget and one that spends less are equally good, and a mixture of them spends exactly the budget.
"""

from typing import NamedTuple

import numpy as np

from disco_core.beyond.expectation import least
from disco_core.beyond.optimal.options import Options
from disco_core.checks import Floats, Ints

ROUNDING = 1e-12  # of probabilities, and of seconds relative to the mean
_STEPS = 200  # of the search for the price, which ends after some ten
# Another price can raise the deadline again: it is found from below first, and roughly, and only then closely.
# Relative accuracy of the deadline, which of its two bounds is taken, relative accuracy of the mean
_STAGES = ((1e-4, 0, 1e-7), (1e-9, 1, ROUNDING))


class Choice(NamedTuple):
    """A plan: a part `made` of each length takes the choice `met`, the rest `free`; each of shape (lengths,).

    forced   whether some part has a worse choice than its best one, so as to meet the deadline
    """

    mean_s: float
    share: float
    made: Floats
    met: Ints
    free: Ints
    forced: bool

    def total(self, price: float) -> float:
        """Mean plus price times share, in seconds."""
        return self.mean_s + price * self.share


class Optimum(NamedTuple):
    """The best plan: choices and their probability, shape (lengths, choices).

    t        the deadline in seconds
    price    seconds of mean TTFT that another unit of the share would save
    bound_s  no plan with this deadline and share has a lower mean
    spent    whether more than the budget would lower the mean
    forced   whether the mean would be lower without the deadline
    """

    choices: Ints
    probability: Floats
    t: float
    price: float
    bound_s: float
    spent: bool
    forced: bool


class Priced:
    """All options at a price in seconds per unit of the share; `seconds=0` counts the share alone.

    allowed   the largest `P(TTFT > t)`
    """

    def __init__(self, options: Options, allowed: float, price: float, *, seconds: float = 1.0) -> None:
        self.options, self.allowed = options, allowed + ROUNDING / 10
        self._flat = np.full(options.share.size + 1, np.inf)
        self.value: Floats = self._flat[:-1].reshape(options.rows.size, -1)
        np.multiply(price, options.share, out=self.value)
        if seconds:
            self.value += options.mean_s
        self.free = self.value.min(axis=1)

    def up_to(self, last: Ints) -> Floats:
        """The best of the choices up to `last` of each length, shape (lengths,)."""
        ranges = np.repeat(self.options.rows * self.value.shape[1], 2)
        ranges[1::2] += last + 1
        return np.minimum.reduceat(self._flat, ranges)[::2]

    def cover(self, t: float) -> tuple[Floats, Ints, Floats] | None:
        """How much of each length is made to meet the deadline, the last choice with which it does, and the value of
        the best one up to it; None if the deadline cannot be met.
        """
        last, tail, less = self.options.tail(t)
        met, chance = self.up_to(last), self.options.lengths.chance
        need, made = chance @ tail - self.allowed, np.zeros(last.size)
        if need > 0:
            of_use = less > 0
            rate = np.divide(met - self.free, less, out=np.full(last.size, np.inf), where=of_use)
            order = np.argsort(rate, kind="stable")
            step = (chance * less)[order]
            up_to = np.cumsum(step)
            if up_to[-1] < need:
                return None
            part = np.divide(need - up_to + step, step, out=np.zeros(last.size), where=of_use[order])
            made[order] = np.minimum(np.maximum(part, 0.0), 1.0)
        return made, last, met

    def total(self, t: float) -> float:
        """The least mean plus price times share of all plans that meet the deadline t; inf if none does."""
        covered = self.cover(t)
        if covered is None:
            return float("inf")
        made, _, met = covered
        return float(self.options.lengths.chance @ (self.free + made * (met - self.free)))

    def choice(self, t: float) -> Choice:
        """A plan with this total: at any other price the total is at most that of this plan."""
        covered = self.cover(t)
        assert covered is not None, "the deadline can be met"
        made, _, value = covered
        rows, chance = self.options.rows, self.options.lengths.chance
        free, met = self.value.argmin(axis=1), (self.value == value[:, None]).argmax(axis=1)
        mean_s, share = (
            float(chance @ (table[rows, free] * (1 - made) + table[rows, met] * made))
            for table in (self.options.mean_s, self.options.share)
        )
        return Choice(mean_s, share, made, met, free, bool((made * (value - self.free)).max() > ROUNDING * mean_s))


def least_deadline(options: Options, allowed: float, budget: float) -> float:
    """The least t for which the budget is enough, whatever the mean."""
    return least(Priced(options, allowed, 1.0, seconds=0.0).total, budget, 0.0, options.latest_s)[1]


def optimum(options: Options, allowed: float, budget: float, t: float, limit_s: float = np.inf) -> Optimum:
    """The plan of the least mean for the least deadline from t on with which that mean is at most `limit_s`.

    If there is none, the plan of the least mean of all.
    """
    t *= 1 + ROUNDING  # so that a time that was rounded up beyond it still meets it
    lowest = ROUNDING * float(options.mean_s.max())  # above 0, so that nothing is spent where it saves nothing
    price, predicted = lowest, np.inf
    more: Choice | None = None  # a plan that spends more than the budget
    fewer = Priced(options, allowed, 1.0, seconds=0.0).choice(t)  # one that does not, but for rounding
    for accuracy, side, rounding in _STAGES:
        for _ in range(_STEPS):
            priced = Priced(options, allowed, price)
            plan = priced.choice(t)
            if plan.total(price) - price * budget > limit_s:  # so no plan with this deadline has such a mean
                t = least(priced.total, limit_s + price * budget, t, options.latest_s, accuracy)[side]
                plan = priced.choice(t)
            bound_s = plan.total(price) - price * budget
            if plan.share > budget:
                more = plan
            else:
                fewer = plan
            if more is None or bound_s >= predicted - rounding * plan.mean_s:
                break
            price = (fewer.mean_s - more.mean_s) / (more.share - fewer.share)
            predicted = more.mean_s + price * (more.share - budget)
    part = 0.0 if more is None else max(budget - fewer.share, 0.0) / (more.share - fewer.share)
    plans = [(1.0 - part, fewer)] if more is None else [(part, more), (1.0 - part, fewer)]
    return Optimum(*_mixture(plans), t, price, bound_s, price > lowest, plan.forced)


def _mixture(plans: list[tuple[float, Choice]]) -> tuple[Ints, Floats]:
    """The choices of plans that are taken at random, equal ones together, and of what is left the columns in use."""
    choices = np.stack([at for _, plan in plans for at in (plan.met, plan.free)], axis=1)
    probability = np.stack([p * part for p, plan in plans for part in (plan.made, 1 - plan.made)], axis=1)
    for column in range(1, choices.shape[1]):
        for before in range(column):
            same = choices[:, column] == choices[:, before]
            probability[same, before] += probability[same, column]
            probability[same, column] = 0.0
    order = np.argsort(probability == 0, axis=1, kind="stable")[:, : int((probability > 0).sum(axis=1).max())]
    return np.take_along_axis(choices, order, axis=1), np.take_along_axis(probability, order, axis=1)
