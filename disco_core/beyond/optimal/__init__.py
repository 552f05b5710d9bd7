"""The best dispatch plan, and the proof that no plan is better.

Of all plans within the budget b it takes the one with the least t such that `P(TTFT > t) <= 1 - q`, among those whose
mean TTFT is at most 1 % above that of DiSCo's plan; of the plans with this deadline, the one with the least mean.

`plan_optimal` returns the plan, `solve` its certificate too.
"""

from disco_core.beyond.optimal.solution import Solution, plan_optimal, solve

__all__ = ["Solution", "plan_optimal", "solve"]
