"""What DiSCo would change for a pair: TTFT and cost of every policy, a recommended plan, and how sure that is."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import traces
from artifact.pair import splits
from artifact.pair.pair import Pair
from artifact.pair.recommendation import Recommendation, choose
from artifact.pair.splits import DISCO, FLOOR, OPTIMAL, SERVER
from disco_core.beyond.length_dependence import LengthDependence
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint, CostModel
from disco_core.errors import ConstraintError
from disco_core.latency import ServerProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import simulate
from disco_core.workload import LengthDistribution, Workload

BUDGETS = tuple(k / 10 for k in range(1, 11))  # with all of it, DiSCo starts both endpoints at once
SPLITS, FEWER, LARGE = 100, 40, 1000  # random halves; of a record of so many requests fewer, since they differ less
MEASURES = ("mean_s", "p99_s", "server_share", "device_share")
SIMULATED = 20_000  # answers at most, drawn for costs and migration


@dataclass(frozen=True, eq=False)
class Study:
    """All that is computed of a pair; each part when it is first asked for.

    constraint  the constrained endpoint, and `chosen`, why it is that one
    cost        prices per token, None where none were given
    """

    pair: Pair
    constraint: Constraint
    chosen: str
    cost: CostModel | None
    count: int = SPLITS
    seed: int = 0

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets that are studied, ascending; the last is all of it."""
        return BUDGETS

    @property
    def length(self) -> Ints:
        """Prompt tokens of the record, shape (n,)."""
        return self.pair.requests.prompt_tokens

    @property
    def ttft_s(self) -> Floats:
        """The server's TTFT in seconds, shape (n,)."""
        return self.pair.requests.ttft_s

    @cached_property
    def ttft(self) -> TTFTDistribution:
        """F of the record."""
        return TTFTDistribution(self.ttft_s)

    @cached_property
    def dependence(self) -> LengthDependence:
        """Whether the server's TTFT depends on the prompt's length."""
        return LengthDependence.fit(self.length, self.ttft_s)

    @property
    def shown_budget(self) -> float:
        """The budget at which policies are compared: the recommended one, or the least where none is worth it."""
        return self.recommendation.budget or BUDGETS[0]

    @cached_property
    def past(self) -> splits.Past:
        """All requests of the record, to plan from."""
        return splits.Past(self.length, self.ttft_s, self.pair.device)

    @cached_property
    def halves(self) -> pd.DataFrame:
        """Every policy at every budget on halves of the record that it was not planned with."""
        given = self.length, self.ttft_s, self.pair.device, BUDGETS
        return splits.halves(*given, self.constraint, self.count, self.seed)

    @cached_property
    def policies(self) -> pd.DataFrame:
        """For each budget and policy mean_s, p99_s and shares, with 95 % bands; `used` is the constrained share."""
        table = splits.banded(self.halves, MEASURES, ["b", "policy"])
        return table.assign(used=table[f"{self.constraint.value}_share"])

    @cached_property
    def cuts(self) -> pd.DataFrame:
        """Cut of mean and P99 TTFT against server only, in percent, for each split, budget and policy."""
        wide = self.halves.pivot(index=["split", "b"], columns="policy", values=["mean_s", "p99_s"])
        parts = [100 * (1 - wide[value].div(wide[value, SERVER], axis=0)) for value in ("mean_s", "p99_s")]
        return pd.concat(parts, axis=1, keys=["mean_cut", "p99_cut"]).stack("policy", future_stack=True).reset_index()

    @cached_property
    def recommendation(self) -> Recommendation:
        """The plan that is recommended, made from all requests."""
        return choose(self)

    @cached_property
    def outputs(self) -> LengthDistribution:
        """Answer lengths of the record, or where it has none those of Alpaca."""
        known = self.pair.requests.output_tokens
        known = known[~np.isnan(known)]
        return LengthDistribution.of(known) if known.size else traces.lengths("alpaca", "output")

    @cached_property
    def rule(self) -> MigrationRule | None:
        """DiSCo's migration rule at these prices; None without prices."""
        if self.cost is None:
            return None
        return MigrationRule(self.cost, self.outputs, self.ttft, self.pair.device)

    @property
    def server_rate(self) -> float:
        """Tokens per second of the server; of a record that does not tell it, that of the simulated services."""
        return traces.SERVER_RATE if np.isnan(self.pair.server_rate) else self.pair.server_rate

    @cached_property
    def costs(self) -> pd.DataFrame:
        """$ per 1,000 requests of each policy at the recommended budget, with and without migration; QoE.

        Empty without prices. The record's requests, repeated, with answer lengths drawn for all policies alike.
        """
        if self.cost is None:
            return pd.DataFrame()
        rng = np.random.default_rng(self.seed)
        rows = np.tile(np.arange(self.length.size), max(1, min(20, SIMULATED // self.length.size)))
        load = Workload(np.arange(rows.size, dtype=float), self.length[rows], self.outputs.sample(rows.size, rng))
        ends = ServerProfile(self.ttft, self.server_rate), self.pair.device
        every = self.past.plans(self.shown_budget, self.constraint)
        found = []
        for policy, plan in every.items():
            moves = policy in (DISCO, OPTIMAL)
            for rule in (None, self.rule) if moves else (None,):
                draws: dict[str, Any] = {"rng": np.random.default_rng(self.seed + 1), "ttft_s": self.ttft_s[rows]}
                result = simulate(load, plan, *ends, self.cost, rule, **draws)
                row: dict[str, Any] = {"policy": policy, "migration": "yes" if rule else "no"}
                row["$ per 1,000"] = 1e3 * float(np.mean(result.ledger.cost(self.cost)))
                if result.migrated_at is not None and result.qoe is not None:
                    row |= {"migrated (%)": 100 * float(np.mean(result.migrated_at > 0)), "QoE": result.qoe.mean()}
                found.append(row)
        return pd.DataFrame(found)

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        one = self.recommendation
        values = [
            {name: float(self.at(policy, one.budget)[name]) for name in MEASURES} for policy in (SERVER, one.policy)
        ]
        parts = [
            _change(name, [row[key] for row in values], " s") for name, key in (("mean", "mean_s"), ("P99", "p99_s"))
        ]
        if self.cost is not None:
            parts.append(_change("$ per 1,000 requests", [self.price(policy) for policy in (SERVER, one.policy)]))
        how = f"At b = {one.budget:g} ({one.policy})" if one.budget else f"{one.policy.capitalize()}, without DiSCo"
        return f"{how}: {', '.join(parts)}; the {self.constraint.value} is the constrained endpoint."

    def at(self, policy: str, budget: float) -> pd.Series:
        """The row of `policies` of a policy at a budget; for 0 at the least one, where a policy has no budget."""
        table = self.policies
        return table[(table["policy"] == policy) & np.isclose(table["b"], budget or BUDGETS[0])].iloc[0]

    def price(self, policy: str) -> float:
        """$ per 1,000 requests of a policy at the recommended budget, with migration where it migrates."""
        rows = self.costs[self.costs["policy"] == policy]
        return float(rows["$ per 1,000"].iloc[-1])


def _change(name: str, values: list[float], unit: str = "") -> str:
    """Before and after, or one value where they are the same."""
    before, after = (f"{value:.3g}" for value in values)
    return f"{name} {before}{unit}" if before == after else f"{name} {before} -> {after}{unit}"


def study(pair: Pair, constraint: Constraint | None = None) -> Study:
    """The study of a pair.

    constraint   the constrained endpoint where the prices do not decide it; by default the one that the pair was
                 measured with, or else the device, as for a battery
    """
    if constraint is None and pair.about.get("constraint"):
        constraint = Constraint(pair.about["constraint"])
    cost = None if pair.prices is None else pair.prices.model(pair.device)
    count = SPLITS if len(pair.requests) < LARGE else FEWER
    why = "no prices were given"
    if cost is not None:
        try:
            return Study(pair, cost.constraint, "at these prices", cost, count)
        except ConstraintError:
            why = "the prices overlap, so they do not decide"
    chosen = "as asked for" if constraint else "which is assumed (CONSTRAINT=server takes the other)"
    return Study(pair, constraint or Constraint.DEVICE, f"{chosen}, since {why}", cost, count)


@lru_cache(maxsize=4)
def _studied(pair: Pair, constraint: Constraint | None) -> Study:
    return study(pair, constraint)


def recommend(pair: Pair, constraint: Constraint | None = None) -> Recommendation:
    """The plan and the rule that are recommended for a pair; the headline of its study."""
    return _studied(pair, constraint).recommendation


def headline(pair: Pair, constraint: Constraint | None = None) -> str:
    """The result for a pair in a sentence."""
    return _studied(pair, constraint).headline


__all__ = ["BUDGETS", "FLOOR", "Recommendation", "Study", "headline", "recommend", "study"]
