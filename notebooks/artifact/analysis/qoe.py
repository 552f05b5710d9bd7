"""Quality of experience of every policy under a budget, with migration and without, answer by answer."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.analysis import scenario
from artifact.analysis.budgets import single, spending
from artifact.analysis.migrations import EQUAL_PRICES, saving
from artifact.data import traces
from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint
from disco_core.delivery import LISTENING_RATE, READING_RATE, TTFT_EXPECTED
from disco_core.dispatch import DispatchPlan, plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import Result, simulate
from disco_core.workload import LengthDistribution, Workload

UNMIGRATED = "DiSCo, no migration"
POLICIES = ("server only", "device only", "Stoch", "Stoch+", "DiSCo", UNMIGRATED)
PACES = {"reading": READING_RATE, "listening": LISTENING_RATE}  # tokens per second
NOTICED = 0.01  # a loss of QoE above this is counted


def by_formula(ttft_s: Floats, output_tokens: Ints, rate: float) -> Floats:
    """QoE of answers that are late by their first token only: `1 / (1 + 2 d r / N)`, d seconds too late."""
    late_s = np.maximum(ttft_s - TTFT_EXPECTED, 0)
    return 1 / (1 + 2 * late_s * rate / output_tokens)


@dataclass(frozen=True)
class QoEStudy:
    """What is simulated: every policy, service, device, constraint and budget, with the same requests for each.

    prompts, outputs   lengths, which are drawn
    budgets      b, shares of all prompt tokens
    requests     drawn for each point, also for a bootstrap replicate
    low          an answer whose QoE is below this is counted as a bad one
    seed         of every draw
    """

    services: Mapping[str, traces.Service]
    devices: Mapping[str, DeviceProfile]
    prompts: LengthDistribution
    outputs: LengthDistribution
    budgets: Sequence[float] | Floats
    requests: int
    low: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        checks.count(self.requests, "requests")
        checks.fraction(self.low, "low")

    def without_migration(self, replicates: int = 0) -> pd.DataFrame:
        """Mean QoE and share of bad answers of the policies that never migrate, on each trace and its replicates.

        Columns: pace, service, constrained, device, policy, b, replicate, qoe, bad; replicates are of reading only.
        """
        if replicates != 0:
            checks.count(replicates, "replicates")
        rows, rng = [], np.random.default_rng(np.random.SeedSequence(self.seed).spawn(3)[-1])
        for one in tqdm([*traces.replicates(self.services, replicates, rng)], disable=None):
            replicate, ttft = one["replicate"], one["ttft"]
            draw = self._draw(replicate)
            tokens, paces = draw[0].output_tokens, PACES if replicate == 0 else {"reading": PACES["reading"]}
            for constraint in Constraint:
                plans = [(np.nan, *plan) for plan in single().items()]
                plans += [(b, *plan) for b in self.budgets for plan in self._spending(b, constraint, ttft).items()]
                for (device, profile), (b, policy, plan) in itertools.product(self.devices.items(), plans):
                    ttft_s = _race(draw, plan, ttft, profile).ttft_s
                    keys = {"service": one["service"], "constrained": constraint.value, "device": device}
                    keys |= {"policy": policy, "b": b, "replicate": replicate}
                    for pace, rate in paces.items():
                        rows.append({"pace": pace} | keys | self._summary(by_formula(ttft_s, tokens, rate)))
        return pd.DataFrame(rows)

    def with_migration(self) -> tuple[pd.DataFrame, float]:
        """The same of DiSCo with its migration rule, on each trace, token by token.

        Further columns: qoe_without, of the same race without migration; migrated, the share of the answers; worse,
        the share that loses more than NOTICED, and worst, the largest loss of an answer; saved, percent of cost.
        Also the largest difference between the QoE of races without migration token by token and `by_formula`.
        """
        rows, off, draw = [], 0.0, self._draw(0)
        grid = [*itertools.product(self.services.items(), Constraint, self.devices.items(), self.budgets)]
        for (name, service), constraint, (device, profile), b in tqdm(grid, disable=None):
            plan = plan_disco(constraint, self.prompts, service.ttft, b)
            cost = scenario.cost_model(service, constraint)
            for pace, rate in PACES.items():
                rule = MigrationRule(cost, self.outputs, service.ttft, profile, rate)
                result = _race(draw, plan, service.ttft, profile, cost, rule)
                unmigrated = by_formula(result.ttft_s, draw[0].output_tokens, rate)
                if pace == "reading" and b in (0.1, 0.5, 0.9):
                    still = _race(draw, plan, service.ttft, profile, cost, replace(rule, cost=EQUAL_PRICES))
                    off = max(off, float(np.abs(np.asarray(still.qoe) - unmigrated).max()))
                keys = {"pace": pace, "service": name, "constrained": constraint.value, "device": device}
                keys |= {"policy": "DiSCo", "b": b, "replicate": 0}
                rows.append(keys | self._of_migration(result, unmigrated))
        return pd.DataFrame(rows), off

    def _spending(self, b: float, constraint: Constraint, ttft: TTFTDistribution) -> dict[str, DispatchPlan]:
        plans = spending(b, constraint, self.prompts, ttft)
        return {UNMIGRATED if policy == "DiSCo" else policy: plan for policy, plan in plans.items()}

    def _of_migration(self, result: Result, unmigrated: Floats) -> dict[str, float]:
        quality, migrated_at = np.asarray(result.qoe), np.asarray(result.migrated_at)
        lost = unmigrated - quality
        return self._summary(quality) | {
            "qoe_without": unmigrated.mean(),
            "migrated": (migrated_at > 0).mean(),
            "worse": (lost > NOTICED).mean(),
            "worst": lost.max().round(9) + 0.0,  # rounding leaves no -0
            "saved": saving(result),
        }

    def _summary(self, quality: Floats) -> dict[str, float]:
        return {"qoe": quality.mean(), "bad": (quality < self.low).mean()}

    def _draw(self, replicate: int) -> tuple[Workload, np.random.SeedSequence]:
        requests, raced = traces.streams(self.seed, replicate, 2)
        load = Workload.sample(self.requests, self.prompts, self.outputs, np.random.default_rng(requests))
        return load, raced


def _race(
    draw: tuple[Workload, np.random.SeedSequence],
    plan: DispatchPlan,
    ttft: TTFTDistribution,
    device: DeviceProfile,
    *priced: Any,
) -> Result:
    # equal seeds, so that every policy sees the same TTFTs
    load, seed = draw
    return simulate(load, plan, scenario.server(ttft), device, *priced, rng=np.random.default_rng(seed))
