"""Which plan is recommended for a pair, why, and how sure that is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from artifact.pair.splits import DEVICE, DISCO, OPTIMAL, SERVER
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_only
from disco_core.migration import MigrationRule

if TYPE_CHECKING:
    from artifact.pair.study import Study

FEW = 200  # requests below which the P99 of a half is its slowest request or the one before it
MANY = 1000  # requests from which on the band of P99 can be relied on
LEAST = 0.02  # of the mean TTFT: a smaller difference is none
PART = 0.8  # of what both endpoints at once save, which the recommended budget reaches


@dataclass(frozen=True, eq=False)
class Recommendation:
    """A plan for the pair: its rule (None without prices), budget b, and in words why it and how sure that is."""

    plan: DispatchPlan
    rule: MigrationRule | None
    policy: str
    budget: float
    constraint: Constraint
    why: str
    sure: str


def choose(study: "Study") -> Recommendation:
    """The recommendation; its plan is made from all requests of the record.

    A budget is recommended if with it mean TTFT is no longer than that of server only, and it reaches `PART` of what
    both endpoints at once save over the other endpoint alone; the least such budget. Otherwise one endpoint alone.
    """
    budget, policy, why = _budget(study)
    if budget:
        planned = study.past.plans(budget, study.constraint)
        if policy == OPTIMAL:
            why += " The optimal plan, since its P99 is below DiSCo's on requests that neither knows."
        plan = planned[policy]
    else:
        plan = plan_server_only() if policy == SERVER else plan_device_only()
    return Recommendation(plan, study.rule, policy, budget, study.constraint, why, _sure(study, policy, budget))


def _budget(study: "Study") -> tuple[float, str, str]:
    """Budget (0: one endpoint alone), policy, and why."""
    other = SERVER if study.constraint is Constraint.DEVICE else DEVICE
    server_s, alone_s = (study.at(name, 0)["mean_s"] for name in (SERVER, other))
    mean_s = {b: study.at(DISCO, b)["mean_s"] for b in study.budgets}
    both_s = mean_s[study.budgets[-1]]
    if alone_s - both_s <= LEAST * alone_s:
        helper = study.constraint.value
        why = f"Even without a limit the {helper} would shorten mean TTFT by less than {100 * LEAST:.0f} %."
        if alone_s > (1 + LEAST) * server_s:
            return 0.0, SERVER, f"{why} The device alone is slower than the server alone: cheaper, but not as fast."
        return 0.0, other, why
    limit_s = min(alone_s - PART * (alone_s - both_s), (1 + LEAST) * server_s)
    useful = study.budgets if both_s < (1 - LEAST) * server_s else study.budgets[:-1]  # all of it is server only
    b = next((b for b in useful if mean_s[b] <= limit_s), None)
    if b is None:
        slow = "At no budget is DiSCo's mean TTFT as short as that of server only: the device is too slow."
        return 0.0, SERVER, f"{slow} A smaller budget is cheaper, but slower; the table says by how much."
    why = (
        f"b = {b:g} is the least budget with which DiSCo reaches {100 * PART:.0f} % of what both endpoints at once "
        f"save of the mean TTFT of {other}, and is no slower than server only, on requests that it does not know."
    )
    return b, _policy(study, b), why


def _policy(study: "Study", budget: float) -> str:
    """The optimal plan where its P99 is below DiSCo's in 95 of 100 splits, at about the same mean; else DiSCo."""
    if study.length.size < FEW:
        return DISCO
    here = study.halves[np.isclose(study.halves["b"], budget)].pivot(index="split", columns="policy")
    gain_s = here["p99_s", DISCO] - here["p99_s", OPTIMAL]
    longer = here["mean_s", OPTIMAL].mean() / here["mean_s", DISCO].mean() - 1
    return OPTIMAL if np.quantile(gain_s, 0.05) > 0 and longer <= LEAST else DISCO


def _sure(study: "Study", policy: str, budget: float) -> str:
    n = study.length.size
    few = ""
    if n < FEW:
        few = f" P99 cannot be known from {n} requests: it is one of the slowest. Record 1,000."
    elif n < MANY:
        few = f" With fewer than {MANY:,} requests the band of P99 may be too narrow."
    if policy == SERVER:
        return f"{n} requests.{few}"
    here = study.cuts[(study.cuts["policy"] == policy) & np.isclose(study.cuts["b"], budget or study.budgets[0])]
    words = [
        _difference(name, here[value].to_numpy(float)) for name, value in (("mean", "mean_cut"), ("P99", "p99_cut"))
    ]
    return f"{n} requests in {study.count} random halves, against server only: {'; '.join(words)}.{few}"


def _difference(name: str, cut: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    """A cut of TTFT in words, with its band; where the band crosses 0, that it is not known."""
    low, high = np.quantile(-cut, [0.025, 0.975])
    band = f"{_percent(low)} to {_percent(high)}"
    if round(low) == 0 == round(high):
        return f"{name} TTFT is the same"
    if round(low) < 0 < round(high):
        return f"{name} TTFT, whether it is shorter or longer is not known ({band})"
    return f"{name} TTFT {_percent(-cut.mean())} ({band})"


def _percent(value: float) -> str:
    """A change in whole percent, with its sign; 0 has none."""
    return f"{round(value):+d} %" if round(value) else "0 %"
