"""What a plan does where prompts or TTFT are not as planned, and what its settings change.

Two numbers of each run say it. *deviation* is the constrained endpoint's share of prompt tokens minus the budget b;
above 0 the plan overspends. *p99_excess* is by how many percent its P99 TTFT exceeds that of a plan made with full
knowledge, at the same b and for the same requests; below 0 where overspending buys a lower one.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from artifact.analysis import scenario
from artifact.data import traces
from disco_core.checks import Floats
from disco_core.cost import Constraint, CostModel
from disco_core.dispatch import DispatchPlan, plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import simulate
from disco_core.workload import LengthDistribution, Workload

CELL = ["b", "service", "device"]
DEFAULT_ALPHA = 0.05
Shifts = Mapping[str, tuple[TTFTDistribution, TTFTDistribution]]  # name: planned on, run on


@dataclass(frozen=True)
class Mismatch:
    """The planned world, and runs of DiSCo in it and in others; every method gives a table with one row per run.

    services, devices   by name
    prompt, answer      lengths in tokens that plans are made for
    requests            simulated in each run; all runs see the same draws
    tail                alpha that is planned with
    """

    services: Mapping[str, traces.Service]
    devices: Mapping[str, DeviceProfile]
    prompt: LengthDistribution
    answer: LengthDistribution
    requests: int
    tail: float
    seed: int

    @cached_property
    def seeds(self) -> list[np.random.SeedSequence]:
        """Seeds of the requests, of the server's TTFT, of the plans and of further draws."""
        return np.random.SeedSequence(self.seed).spawn(4)

    @cached_property
    def load(self) -> Workload:
        """The requests of the planned world."""
        return self.requests_of(self.prompt, self.answer)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every service with every device."""
        return list(product(self.services, self.devices))

    def requests_of(self, prompt: LengthDistribution, answer: LengthDistribution, n: int | None = None) -> Workload:
        """Requests with these lengths, from the same draws each time."""
        return Workload.sample(n or self.requests, prompt, answer, np.random.default_rng(self.seeds[0]))

    def plan(
        self,
        constraint: Constraint,
        b: float,
        ttft: TTFTDistribution,
        lengths: LengthDistribution | ArrayLike | None = None,
        tail: float | None = None,
    ) -> DispatchPlan:
        """DiSCo's plan; by default for the planned lengths and with the planned alpha."""
        tail = self.tail if tail is None else tail
        return plan_disco(constraint, self.prompt if lengths is None else lengths, ttft, b, tail=tail)

    def run(
        self,
        plan: DispatchPlan,
        ttft: TTFTDistribution,
        device: DeviceProfile,
        lengths: LengthDistribution | None = None,
        load: Workload | None = None,
    ) -> dict[str, float]:
        """A plan run on this F, with the planned prompts or others: deviation, p99_s and mean_s of TTFT.

        The share is the expected one, computed from the plan without drawing anything.
        """
        assert plan.constraint is not None
        assert plan.budget is not None
        prompts = lengths or self.prompt
        share = plan.expected_shares(prompts, ttft, device)[plan.constraint.end]  # type: ignore[arg-type]
        result = simulate(
            load or self.load,
            plan,
            scenario.server(ttft),
            device,
            ttft_s=ttft.sample(self.requests, np.random.default_rng(self.seeds[1])),
            rng=np.random.default_rng(self.seeds[2]),
        ).summary()
        deviation = round(float(share - plan.budget), 12) + 0.0
        return {"deviation": deviation, "p99_s": result["p99_ttft_s"], "mean_s": result["mean_ttft_s"]}

    def alphas(self, alphas: Iterable[float], budgets: Iterable[float]) -> pd.DataFrame:
        """DiSCo-D with each alpha: P99 and mean TTFT, and both over those with the default alpha (p99, mean)."""
        rows = []
        for a, b, (s, d) in product(alphas, list(budgets), self.pairs):
            ttft = self.services[s].ttft
            key: dict[str, Any] = {"alpha": f"{a:g}", "b": b, "service": s, "device": d}
            rows.append(key | self.run(self.plan(Constraint.DEVICE, b, ttft, tail=a), ttft, self.devices[d]))
        table = pd.DataFrame(rows)
        default = table[table["alpha"] == f"{DEFAULT_ALPHA:g}"].set_index(CELL)[["p99_s", "mean_s"]]
        table = table.join(default.add_suffix("_default"), on=CELL)
        ratios = {"p99": table["p99_s"] / table["p99_s_default"], "mean": table["mean_s"] / table["mean_s_default"]}
        return table.assign(**ratios)

    def budgets(self, budgets: Iterable[float]) -> pd.DataFrame:
        """As planned, at each budget, of which 0 is the first; `cut`: of P99 TTFT against that budget, in percent."""
        rows = []
        for c, b, (s, d) in product(Constraint, list(budgets), self.pairs):
            ttft = self.services[s].ttft
            key: dict[str, Any] = {"constrained": c.value, "b": b, "service": s, "device": d}
            rows.append(key | self.run(self.plan(c, b, ttft), ttft, self.devices[d]))
        table = pd.DataFrame(rows)
        without = table.groupby(["constrained", "service", "device"])["p99_s"].transform("first")
        return table.assign(cut=100 * (1 - table["p99_s"] / without))

    def lengths(self, others: Mapping[str, LengthDistribution], budgets: Iterable[float]) -> pd.DataFrame:
        """Planned for the planned lengths, run on others; `share`: of the constrained endpoint."""
        rows = []
        loads = {name: self.requests_of(lengths, lengths) for name, lengths in others.items()}
        for (name, lengths), c, b, (s, d) in product(others.items(), Constraint, list(budgets), self.pairs):
            ttft = self.services[s].ttft
            world = ttft, self.devices[d], lengths, loads[name]
            planned, informed = (self.run(self.plan(c, b, ttft, known), *world) for known in (self.prompt, lengths))
            key: dict[str, Any] = {"prompts": name, "constrained": c.value, "b": b, "service": s, "device": d}
            rows.append(key | {"share": b + planned["deviation"]} | planned | _excess(planned, informed))
        return pd.DataFrame(rows)

    def shifts(self, shifts: Shifts, budgets: Iterable[float]) -> pd.DataFrame:
        """DiSCo-D planned with one F and run on another."""
        rows = []
        for (name, (before, after)), b, (d, device) in product(shifts.items(), list(budgets), self.devices.items()):
            plans = (self.plan(Constraint.DEVICE, b, ttft) for ttft in (before, after))
            planned, informed = (self.run(plan, after, device) for plan in plans)
            rows.append({"shift": name, "b": b, "device": d} | planned | _excess(planned, informed))
        return pd.DataFrame(rows)

    def samples(self, sizes: Iterable[int], draws: int, budgets: Iterable[float], device: str) -> pd.DataFrame:
        """DiSCo-D on one device, planned with n samples of F, drawn again and again, and run on F."""
        rng, phone, rows = np.random.default_rng(self.seeds[3]), self.devices[device], []
        sizes = list(sizes)
        for (s, service), b in product(self.services.items(), list(budgets)):
            informed = self.run(self.plan(Constraint.DEVICE, b, service.ttft), service.ttft, phone)
            for n, draw in product(sizes, range(draws)):
                plan = self.plan(Constraint.DEVICE, b, TTFTDistribution(service.ttft.sample(n, rng)))
                planned = self.run(plan, service.ttft, phone)
                rows.append({"service": s, "b": b, "n": n, "draw": draw} | planned | _excess(planned, informed))
        return pd.DataFrame(rows)

    def correlation(self, correlations: Iterable[float], budgets: Iterable[float]) -> pd.DataFrame:
        """Server TTFT correlated with prompt length; shares are counted. P99 is held against the run without it.

        Each request's TTFT keeps its F; ranks are correlated by a normal copula (`rho`, 0 is the first).
        """
        from scipy.stats import norm, rankdata

        rng = np.random.default_rng(self.seeds[3])
        jitter, noise = rng.random(self.requests), rng.standard_normal(self.requests)
        by_length = norm.ppf((rankdata(self.load.prompt_tokens + jitter) - 0.5) / self.requests)
        rows, budgets = [], list(budgets)
        for rho in correlations:
            level = (rankdata(rho * by_length + np.sqrt(1 - rho**2) * noise) - 0.5) / self.requests
            for c, b, (s, d) in product(Constraint, budgets, self.pairs):
                ttft = self.services[s].ttft
                plan = self.plan(c, b, ttft, self.load.prompt_tokens)
                given: dict[str, Any] = {"ttft_s": ttft.quantile(level), "rng": np.random.default_rng(self.seeds[2])}
                result = simulate(self.load, plan, scenario.server(ttft), self.devices[d], **given)
                key = {"constrained": c.value, "rho": rho, "b": b, "service": s, "device": d}
                used, p99_s = result.budget_used, result.summary()["p99_ttft_s"]
                rows.append(key | {"deviation": used - b, "p99_s": p99_s})
        table = pd.DataFrame(rows)
        without = table.groupby(["constrained", *CELL])["p99_s"].transform("first")
        return table.assign(p99_excess=100 * (table["p99_s"] / without - 1))

    def reading(self, rates: Iterable[float], requests: int, b: float) -> pd.DataFrame:
        """Migration for readers of each rate (tokens/s).

        Columns: share of answers that move, cost saved in percent, means over those of the buffer in tokens and of
        delayed tokens, and by how much the mean QoE of all answers is lower than without migration.
        """
        load = self.requests_of(self.prompt, self.answer, requests)
        return pd.DataFrame(
            {"constrained": c.value, "rate": rate, "service": s, "device": d}
            | self._migrated(load, c, b, rate, self.services[s], self.devices[d])
            for rate, c, (s, d) in product(rates, Constraint, self.pairs)
        )

    def _migrated(
        self,
        load: Workload,
        constraint: Constraint,
        b: float,
        rate: float,
        service: traces.Service,
        device: DeviceProfile,
    ) -> dict[str, Any]:
        cost = scenario.cost_model(service, constraint)
        rule = MigrationRule(cost, self.answer, service.ttft, device, rate)
        never = dataclasses.replace(rule, cost=CostModel(1, 1, 1, 1))  # equal prices: no answer moves
        plan, server = self.plan(constraint, b, service.ttft), scenario.server(service.ttft)
        with_rule, without = (
            simulate(load, plan, server, device, cost, one, rng=np.random.default_rng(self.seeds[1]))
            for one in (rule, never)
        )
        assert with_rule.migrated_at is not None
        assert with_rule.delay_num is not None
        assert with_rule.cost is not None
        assert with_rule.cost_without is not None
        assert with_rule.qoe is not None
        assert without.qoe is not None
        migrated = with_rule.migrated_at > 0
        buffer: Floats = rule.buffer_needed(load.prompt_tokens, with_rule.migrated_at) + 0.0 * migrated
        return {
            "migrated": migrated.mean(),
            "saved": 100 * (1 - with_rule.cost.sum() / with_rule.cost_without.sum()),
            "buffer": buffer[migrated].mean() if migrated.any() else np.nan,
            "delayed": with_rule.delay_num[migrated].mean() if migrated.any() else np.nan,
            "qoe_lost": without.qoe.mean() - with_rule.qoe.mean(),
        }


def stretched(lengths: LengthDistribution, factor: float) -> LengthDistribution:
    """The same prompts, each `factor` times as long, of at least one token."""
    tokens = np.maximum(np.round(lengths.tokens * factor), 1).astype(int)
    return LengthDistribution.of(np.repeat(tokens, lengths.counts))


def days(source: str) -> dict[int, TTFTDistribution]:
    """F of each day of deepseek-chat's trace."""
    return {day: ttft for day, (_, ttft) in _parts("ttft_by_day", "day", source).items()}


def quarters(source: str) -> tuple[TTFTDistribution, TTFTDistribution]:
    """F of the quarters of the day with the lowest and with the highest mean TTFT, of deepseek-chat's trace."""
    hours = _parts("ttft_by_hour", "hour", source)
    every = [[hours[hour] for hour in range(start, start + 6)] for start in range(0, 24, 6)]
    mixtures = [TTFTDistribution.mixture([ttft for _, ttft in part], [n for n, _ in part]) for part in every]
    calm, *_, busy = sorted(mixtures, key=lambda ttft: ttft.mean)
    return calm, busy


def largest(factors: Iterable[tuple[str, str, pd.DataFrame]]) -> pd.DataFrame:
    """The largest deviation and excess of each (factor, world, runs), for either constrained endpoint.

    Runs without a column `constrained` are of a constrained device.
    """
    rows = {}
    for factor, world, runs in factors:
        runs = runs if "constrained" in runs else runs.assign(constrained="device")
        rows[factor, world] = runs.groupby("constrained")[["deviation", "p99_excess"]].max().stack()
    columns = pd.MultiIndex.from_product([["device", "server"], ["deviation", "p99_excess"]])
    table = pd.DataFrame(rows).T.reindex(columns=columns).round(6) + 0.0
    table.columns = [f"{number}, {endpoint}" for endpoint, number in columns]
    return table.rename_axis(["factor", "world"]).reset_index()


def _excess(planned: Mapping[str, float], informed: Mapping[str, float]) -> dict[str, float]:
    return {"p99_excess": 100 * (planned["p99_s"] / informed["p99_s"] - 1)}


def _parts(table: str, column: str, source: str) -> dict[int, tuple[int, TTFTDistribution]]:
    groups = traces.table(table, source).groupby(column)
    quantiles = TTFTDistribution.from_quantiles
    return {int(str(key)): (int(rows["n"].iloc[0]), quantiles(rows["level"], rows["ttft_s"])) for key, rows in groups}
