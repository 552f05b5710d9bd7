"""What migration does to simulated answers: DiSCo's dispatch with its migration rule, and the same without it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from artifact.analysis import scenario
from artifact.analysis.bootstrap import intervals
from artifact.analysis.sweep import sweep
from artifact.data import traces
from disco_core import checks
from disco_core.checks import Floats
from disco_core.cost import Constraint, CostModel
from disco_core.dispatch import plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import Result, simulate
from disco_core.workload import LengthDistribution, Workload

CELL = ("service", "device", "constrained", "b")
WITHOUT = "without migration"
LEVELS = (0.5, *(k / 200 for k in range(180, 200)), 0.999)  # of a distribution, most of them in its upper tail
EQUAL_PRICES = CostModel(1, 1, 1, 1)  # with these a rule has nothing to save and never migrates


Known = TypeVar("Known")


def saving(result: Result) -> float:
    """Percent of the cost of the same race without migration."""
    return float(100 * (1 - _known(result.cost).sum() / _known(result.cost_without).sum()))


def summary(migrating: Result, without: Result) -> dict[str, float]:
    """Means over requests of one race, with migration and without.

    saving       percent of the cost
    migrated     share of the answers that migrate; of these alone are
    migrated_at  tokens before the hand-over
    delayed      tokens that are generated after they are due
    tbt_p99_s    P99 of the time between tokens in seconds, and tbt_p99_without_s
    qoe          of all answers, and qoe_without
    cost         $ per request, of all answers, and cost_without
    """
    at = _known(migrating.migrated_at) > 0
    of_migrated = {
        "migrated_at": _known(migrating.migrated_at),
        "delayed": _known(migrating.delay_num),
        "tbt_p99_s": _known(migrating.tbt_p99_s),
        "tbt_p99_without_s": _known(without.tbt_p99_s),
    }
    return {
        "saving": saving(migrating),
        "migrated": float(at.mean()),
        **{name: float(np.nanmean(values[at])) if at.any() else np.nan for name, values in of_migrated.items()},
        "qoe": float(_known(migrating.qoe).mean()),
        "qoe_without": float(_known(without.qoe).mean()),
        "cost": float(_known(migrating.cost).mean()),
        "cost_without": float(_known(migrating.cost_without).mean()),
    }


@dataclass(frozen=True)
class MigrationStudy:
    """What is simulated: every service, device, constraint and budget, with the same requests everywhere.

    prompts, outputs   lengths, which are drawn; the rule knows the distribution of `outputs`
    budgets      b, shares of all prompt tokens
    requests     drawn for each cell; a bootstrap replicate draws at most `redrawn`
    takeover     quantile of the server's TTFT that the buffer covers where the server takes over
    reading_rate r_c, tokens per second
    seed         of every draw
    """

    services: Mapping[str, traces.Service]
    devices: Mapping[str, DeviceProfile]
    prompts: LengthDistribution
    outputs: LengthDistribution
    budgets: Sequence[float] | Floats
    requests: int
    redrawn: int
    takeover: float = 0.95
    reading_rate: float = 4.8
    seed: int = 0

    def __post_init__(self) -> None:
        checks.count(self.requests, "requests")
        checks.count(self.redrawn, "redrawn")
        checks.fraction(self.takeover, "takeover")

    def run(self, replicates: int = 0) -> pd.DataFrame:
        """A row for each cell: CELL, `summary` and, with replicates, the bootstrap interval of the saving."""
        if replicates != 0:
            checks.count(replicates, "replicates")
        resampled = np.random.SeedSequence(self.seed).spawn(3)[-1]
        cells = traces.replicates(self.services, replicates, np.random.default_rng(resampled))
        runs = sweep(self.rows, list(cells))
        band = intervals(runs, CELL, ["saving"]).drop(columns="saving")
        return runs[runs["replicate"] == 0].drop(columns="replicate").merge(band, on=list(CELL))

    def rows(self, service: str, replicate: int, ttft: TTFTDistribution) -> Iterator[dict[str, Any]]:
        """The cells of one F; of a bootstrap replicate only the saving, and only at every other budget."""
        budgets = self.budgets[::2] if replicate else self.budgets
        for device, constraint, b in itertools.product(self.devices, Constraint, budgets):
            keys = {"service": service, "device": device, "constrained": constraint.value, "b": b}
            cell = (service, device, constraint, b)
            if replicate:
                found = {"saving": saving(self.race(*cell, ttft=ttft, replicate=replicate))}
            else:
                found = summary(self.race(*cell), self.race(*cell, migrates=False))
            yield keys | {"replicate": replicate} | found

    def race(
        self,
        service: str,
        device: str,
        constraint: Constraint,
        b: float,
        *,
        migrates: bool = True,
        takeover: float | None = None,
        energy: float = 2.0,
        ttft: TTFTDistribution | None = None,
        replicate: int = 0,
    ) -> Result:
        """One cell, with migration or without.

        takeover   another quantile of the server's TTFT
        energy     with a constrained device: its cheaper token's price over the server's more expensive one
        ttft       another F, such as that of a bootstrap replicate, with its number
        """
        its = self.services[service]
        server_ttft = its.ttft if ttft is None else ttft
        requests, raced = traces.streams(self.seed, replicate, 2)
        size = min(self.requests, self.redrawn) if replicate else self.requests
        load = Workload.sample(size, self.prompts, self.outputs, np.random.default_rng(requests))
        cost, profile = scenario.cost_model(its, constraint, energy), self.devices[device]
        quantile = self.takeover if takeover is None else takeover
        rule = MigrationRule(cost, self.outputs, server_ttft, profile, self.reading_rate, quantile)
        rule = rule if migrates else replace(rule, cost=EQUAL_PRICES)
        plan = plan_disco(constraint, self.prompts, server_ttft, b)
        server = scenario.server(server_ttft)
        return simulate(load, plan, server, profile, cost, rule, rng=np.random.default_rng(raced))

    def time_between_tokens(self, constraint: Constraint, b: float) -> pd.DataFrame:
        """How P99 TBT is distributed over the answers that migrate, of all devices, at one budget.

        A row for each of `LEVELS` and of the `answers`: those of each service, and WITHOUT, the same answers of all
        services without migration.
        """
        values: dict[str, list[Floats]] = {name: [] for name in (*self.services, WITHOUT)}
        for service, device in itertools.product(self.services, self.devices):
            race, stayed = (
                self.race(service, device, constraint, b, migrates=migrates) for migrates in (True, False)
            )
            at = _known(race.migrated_at) > 0
            values[service].append(_known(race.tbt_p99_s)[at])
            values[WITHOUT].append(_known(stayed.tbt_p99_s)[at])
        drawn = {name: np.concatenate(parts) for name, parts in values.items()}
        tables = [
            pd.DataFrame({"level": LEVELS, "tbt_p99_s": np.quantile(tbt_s, LEVELS, method="inverted_cdf")}).assign(
                answers=name, n=tbt_s.size
            )
            for name, tbt_s in drawn.items()
            if tbt_s.size
        ]
        return pd.concat(tables, ignore_index=True)


def _known(value: Known | None) -> Known:
    """What a simulation with prices and a rule always has."""
    if value is None:
        raise TypeError("simulated without prices or without a rule")
    return value
