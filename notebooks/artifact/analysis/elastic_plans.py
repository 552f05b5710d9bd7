"""DiSCo with an elastic device on the services' traces: TTFT at equal budget, and what smaller levels generate."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from artifact.analysis import bootstrap, elastic, scenario
from artifact.analysis.sweep import sweep
from artifact.data import traces
from artifact.files import ROOT
from artifact.measure import store
from artifact.measure.elastic_scores import ORDERED, STORED
from artifact.measure.objective_races import ALONE
from artifact.measure.store import Measured
from artifact.publish import figures
from disco_core import checks
from disco_core.checks import Floats
from disco_core.cost import Constraint, End
from disco_core.dispatch import DispatchPlan, plan_disco
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.migration import MigrationRule
from disco_core.simulate import Result, simulate
from disco_core.systems.elastic.device import (
    ElasticDevice,
    begun_tokens,
    elastic_device,
    move_up_rule,
    plan_prefill_work,
    scaled_levels,
)
from disco_core.workload import LengthDistribution, Workload

PAIR = ("service", "device", "constrained")
WHOLE, ELASTIC, WORK = "DiSCo", "DiSCo, elastic", "DiSCo, elastic, equal work"
STAYS, UP, SERVER = "stays", "moves up to the whole model", "moves to the server"
MOVES = {"stays": STAYS, "up": UP, "server": SERVER}  # what happens to an answer, by the end of its columns' names


def speeds(percents: Iterable[int], head_share: float) -> tuple[dict[int, float], dict[int, float]]:
    """Times of each level over the whole model's: m to prefill a token, h + (1 - h) m to generate one."""
    h = checks.fraction(head_share, "head_share")
    shares = {percent: checks.number(percent, "a level", 0, 100, above=True) / 100 for percent in percents}
    return shares, {percent: h + (1 - h) * m for percent, m in shares.items()}


def reference_speeds(
    measurements: str | Path, percents: Iterable[int]
) -> tuple[dict[int, float], dict[int, float]] | None:
    """`speeds` by the measurement elastic/ in a folder, medians over its prompt lengths; None where there is none of
    all these levels.
    """
    if not (ROOT / measurements / "elastic").exists():
        return None
    ratios = elastic.latency(store.read(measurements, "elastic")).groupby("percent")[["ttft", "tpot"]].median()
    if not set(percents) <= set(ratios.index):
        return None
    return {m: float(ratios.ttft[m]) for m in percents}, {m: float(ratios.tpot[m]) for m in percents}


def reference_nats(measurements: str | Path, percents: Iterable[int]) -> dict[int, float] | None:
    """`level_nats` of the measurement elastic/ in a folder; None where there is none, or one without evaluation."""
    if not (ROOT / measurements / "elastic").exists():
        return None
    measured = store.read(measurements, "elastic")
    return level_nats(measured, percents) if elastic.evaluated(measured) else None


def level_nats(measured: Measured, percents: Iterable[int]) -> dict[int, float]:
    """Growth of each level's loss over the whole model's, in nats per token, units in order and without adapters.

    Between the levels that were measured it is interpolated, below the smallest it is that of the smallest.
    """
    table = elastic.perplexity(measured, 1, 0).set_index(["percent", "method"]).nats
    below = table.xs(ORDERED, level="method").sort_index()
    below = below[below.index < elastic.WHOLE] - table[elastic.WHOLE, STORED]
    at, nats = [*below.index, elastic.WHOLE], [*below, 0.0]
    return {percent: float(np.interp(percent, at, nats)) for percent in percents}


@dataclass(frozen=True)
class ElasticStudy:
    """What is simulated: DiSCo at every budget with the whole model, and with levels, for each device and constraint.

    prompts, outputs   lengths, which are drawn; plans know the first, rules the second
    devices      profiles of the whole model, by name
    prefill, decode   times of each level over the whole model's, by percent, 100 among them
    budgets      b, shares of all prompt tokens
    objective    of TTFT: the deadline over P99 TTFT with the whole model at the same budget, in (0, 1]
    requests     drawn for each service, the same for all plans
    nats         growth of the loss of each level in nats per token, if it is known
    tail         alpha of DiSCo-D
    seed         of every draw
    equal_work   whether a constrained device is also planned at equal prefill work
    """

    prompts: LengthDistribution
    outputs: LengthDistribution
    devices: Mapping[str, DeviceProfile]
    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    budgets: Sequence[float] | Floats
    objective: float
    requests: int
    nats: Mapping[int, float] | None = None
    tail: float = 0.05
    seed: int = 0
    constraints: Sequence[Constraint] = tuple(Constraint)
    equal_work: bool = True

    def __post_init__(self) -> None:
        checks.count(self.requests, "requests")
        checks.fraction(checks.positive(self.objective, "objective"), "objective")
        if 100 not in self.prefill:
            raise InputError(f"the levels must have the whole model, 100 %, among them, got {[*self.prefill]}")
        if self.nats is not None and not set(self.prefill) <= set(self.nats):
            raise InputError(f"nats must be given for the levels {[*self.prefill]}, got {[*self.nats]}")

    def run(self, services: Mapping[str, traces.Service]) -> pd.DataFrame:
        """A row for each service, device, constraint, budget and policy.

        mean_s, p99_s   TTFT
        used, work      of all prompt tokens, those the constrained endpoint is started for; the device's prefill work
        again           tokens that the whole model prefills to continue answers, over all prompt tokens; outside the
                        budget, like the prefill of every hand-over
        begun           share of the answers that a smaller level begins
        tokens_*        share of the answers' tokens that smaller levels generate, for each of MOVES; NaN where an
                        answer does not move to the server, since that is the constrained endpoint
        nats_*          growth of the loss of all tokens in nats per token, likewise
        """
        return sweep(self.rows, [{"service": one} for one in services.values()])

    def rows(self, service: traces.Service) -> Iterator[dict[str, Any]]:
        """The rows of one service."""
        requests, served, planned = traces.streams(self.seed, 0, 3)
        load = Workload.sample(self.requests, self.prompts, self.outputs, np.random.default_rng(requests))
        ttft_s = service.ttft.sample(self.requests, np.random.default_rng(served))
        race = partial(simulate, load, server=scenario.server(service.ttft), ttft_s=ttft_s)
        for constraint, b, (name, whole) in itertools.product(self.constraints, self.budgets, self.devices.items()):
            keys = {"service": service.name, "device": name, "constrained": constraint.value, "b": b}
            disco = plan_disco(constraint, self.prompts, service.ttft, b, tail=self.tail)
            alone = race(plan=disco, device=whole, rng=np.random.default_rng(planned))
            yield keys | {"policy": WHOLE} | self._summary(alone, ElasticDevice({100: whole}, [1], [100]), service)
            for policy, plan, device in self._elastic(disco, whole, service, self.objective * p99(alone.ttft_s)):
                found = race(plan=plan, device=device, rng=np.random.default_rng(planned))
                yield keys | {"policy": policy} | self._summary(found, device, service)

    def _elastic(
        self, plan: DispatchPlan, whole: DeviceProfile, service: traces.Service, deadline_s: float
    ) -> Iterator[tuple[str, DispatchPlan, ElasticDevice]]:
        """The plans with an elastic device: at equal prompt tokens and, where that is another plan, at equal work."""
        levels = scaled_levels(whole, self.prefill, self.decode)
        yield ELASTIC, plan, elastic_device(levels, plan, self.prompts, deadline_s)
        if self.equal_work and plan.constraint is Constraint.DEVICE:
            yield WORK, *plan_prefill_work(levels, self.prompts, service.ttft, plan.budget, deadline_s, self.tail)

    def _summary(self, race: Result, device: ElasticDevice, service: traces.Service) -> dict[str, float]:
        """The columns of `run` for one race."""
        prompt, output, constraint = race.load.prompt_tokens, race.load.output_tokens, race.plan.constraint
        level = device.level(prompt)
        begun = (race.winner == End.DEVICE) & (level < 100)
        work = prompt * _by_percent(self.prefill)[level] @ race.device_started / prompt.sum()
        found = {"mean_s": float(race.ttft_s.mean()), "p99_s": p99(race.ttft_s), "used": race.budget_used}
        found |= {"work": float(work), "begun": float(begun.mean())}
        rules: dict[str, MigrationRule | None] = {"stays": None, "up": move_up_rule(device, self.outputs)}
        if constraint is Constraint.DEVICE:
            prices = scenario.cost_model(service, constraint)
            rules["server"] = MigrationRule(prices, self.outputs, service.ttft, device)
        for move in MOVES:
            tokens = np.full(len(output), np.nan)
            if move in rules:
                tokens = begun * begun_tokens(race, device, rules[move]) if begun.any() else np.zeros(len(output))
            found[f"tokens_{move}"] = float(tokens.sum() / output.sum())
            if self.nats is not None:
                found[f"nats_{move}"] = float(tokens @ _by_percent(self.nats)[level] / output.sum())
            if move == "up":
                found["again"] = float((prompt + tokens) @ (begun & (tokens < output)) / prompt.sum())
        return found


def p99(ttft_s: Floats) -> float:
    """P99 of TTFTs in seconds, one of them."""
    return float(np.quantile(ttft_s, 0.99, method="inverted_cdf"))


def pairs(runs: pd.DataFrame, policy: str = ELASTIC) -> pd.DataFrame:
    """Of each pair, averaged over the budgets: P99 and mean TTFT with the whole model and with a policy, the cuts.

    Returns PAIR; p99_whole_s, p99_s, mean_whole_s, mean_s; p99_cut and mean_cut in percent; and the policy's begun,
    work, again, tokens_* and, if it is known, nats_*.
    """
    means = runs.groupby([*PAIR, "policy"], sort=False).mean(numeric_only=True).drop(columns="b")
    whole, ours = means.xs(WHOLE, level="policy"), means.xs(policy, level="policy")
    table = ours.drop(columns="used").assign(p99_whole_s=whole.p99_s, mean_whole_s=whole.mean_s)
    for value in ("p99", "mean"):
        table[f"{value}_cut"] = 100 * (1 - table[f"{value}_s"] / table[f"{value}_whole_s"])
    return table.reset_index()


def frontier(runs: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """Medians over all pairs of a constraint, for the runs of each objective and each value of MOVES.

    Returns constrained, objective, move, p99_cut (percent), tokens (that smaller levels generate, percent) and, if it
    is known, nats.
    """
    rows = []
    for objective, table in runs.items():
        medians = pairs(table).groupby("constrained").median(numeric_only=True)
        for (constrained, row), (end, move) in itertools.product(medians.iterrows(), MOVES.items()):
            found = {"constrained": constrained, "objective": objective, "move": move, "p99_cut": row.p99_cut}
            found |= {"tokens": 100 * row[f"tokens_{end}"]}
            rows.append(found | ({"nats": row[f"nats_{end}"]} if f"nats_{end}" in row else {}))
    return pd.DataFrame(rows).dropna(subset="tokens").reset_index(drop=True)


def raced(measured: Measured, replicates: int, seed: int) -> pd.DataFrame:
    """Live answers under each plan, with the whole model and with levels on the device.

    Returns policy; whole_s and levels_s, mean TTFT; cut and p90_cut, how much lower mean and P90 TTFT are with levels
    (percent), with 95 % bands (bootstrap over prompts); simulated, the cut of the mean in the simulator; m, the mean
    level; begun and moved, shares (percent) of the answers with levels that a smaller level begins, and that move;
    delayed, tokens of these answers that came after their deadline; empty, answers that a smaller level was to begin
    and ended before a token, so that the next endpoint had to, and tried, those that one was to begin; cut_others,
    the cut of the mean without the prompts of empty answers.
    """
    found = []
    for policy, part in measured["races"].groupby("policy", sort=False):
        by = part.pivot(index="request", columns="device", values=["ttft_s", "predicted_s"])
        draws = np.random.default_rng(seed).integers(len(by), size=(replicates, len(by)))
        whole, ours = by.ttft_s["whole"].to_numpy(), by.ttft_s["levels"].to_numpy()
        row = {"policy": policy, "whole_s": whole.mean(), "levels_s": ours.mean()}
        for name, of in (("cut", partial(np.mean, axis=-1)), ("p90_cut", _p90)):
            bands = np.quantile(_cut(of(whole[draws]), of(ours[draws])), [0.025, 0.975])
            row |= {name: _cut(of(whole), of(ours)), f"{name}_low": bands[0], f"{name}_high": bands[1]}
        row["simulated"] = _cut(*by.predicted_s[["whole", "levels"]].mean())
        levels = part[part.device == "levels"]
        # an answer that may move up has its level in the place of the server
        by_level = levels.winner == ("server" if policy == ALONE else "device")
        begun, empty = (levels.level < elastic.WHOLE) & by_level, levels.failures.notna()
        others = ~by.index.isin(levels.request[empty])
        row |= {"m": levels.level.mean(), "begun": 100 * begun.mean(), "tried": int((begun | empty).sum())}
        row |= {"empty": int(empty.sum()), "cut_others": _cut(whole[others].mean(), ours[others].mean())}
        row |= {"moved": 100 * (levels.migrated_at > 0).mean(), "delayed": int(levels.delay_num.sum())}
        found.append(row)
    return pd.DataFrame(found)


def shown(cuts: pd.DataFrame) -> pd.DataFrame:
    """A table of `raced` as a reader sees it."""
    whole = cuts[["simulated", "cut_others"]].round(0) + 0.0  # no -0
    return pd.DataFrame(
        {
            "policy": cuts.policy,
            "mean TTFT, whole model (s)": cuts.whole_s,
            "mean TTFT, levels (s)": cuts.levels_s,
            "cut of the mean (%)": bootstrap.as_text(cuts, "cut", 0).str.replace("-0 ", "0 "),
            "cut of P90 (%)": bootstrap.as_text(cuts, "p90_cut", 0),
            "without empty answers (%)": whole.cut_others,
            "simulated (%)": whole.simulated,
            "empty answers": cuts["empty"].astype(str) + " of " + cuts.tried.astype(str),
            "moved (%)": cuts.moved,
            "delayed tokens": cuts.delayed,
        }
    )


def draw_raced(races: pd.DataFrame) -> Figure:
    """TTFT of live answers by prompt length, a panel for each plan: with the whole model, and with levels.

    Coloured are those that the device began, by its level.
    """
    fig, panels = plt.subplots(1, races.policy.nunique(), figsize=(figures.PAGE_IN, 2.4), sharey=True)
    for panel, (policy, part) in zip(panels, races.groupby("policy", sort=False), strict=True):
        whole, levels = (part[part.device == name] for name in ("whole", "levels"))
        empty = part[part.failures.notna()]
        panel.plot(whole.prompt_tokens, whole.ttft_s, "o", mfc="none", color="0.5", ms=4, label="whole model")
        other = (levels.winner != "device") & (policy != ALONE)
        look = {"c": levels.level[~other], "cmap": "viridis", "vmin": 30, "vmax": 100}
        panel.plot(levels.prompt_tokens[other], levels.ttft_s[other], ".", color="0.6", ms=4, label="by the server")
        begun = levels[~other]
        points = panel.scatter(begun.prompt_tokens, begun.ttft_s, s=12, zorder=3, label="levels", **look)
        panel.plot(empty.prompt_tokens, empty.ttft_s, "x", color="0.2", ms=6, zorder=4, label="empty answer")
        panel.set(title=policy, xlabel="prompt tokens", ylim=(0, 1.05 * races.ttft_s.max()))
    panels[0].set_ylabel("TTFT (s)")
    panels[0].legend(loc="upper left")
    fig.colorbar(points, ax=panels, label="level (%)")
    found: Figure = fig
    return found


def _p90(ttft_s: Floats) -> Any:
    return np.quantile(ttft_s, 0.9, axis=-1, method="inverted_cdf")


def _cut(whole_s: Any, ours_s: Any) -> Any:
    return 100 * (1 - ours_s / whole_s)


def _by_percent(values: Mapping[int, float]) -> Floats:
    """The values of levels as an array that percents index."""
    return np.array([values.get(percent, np.nan) for percent in range(101)])
