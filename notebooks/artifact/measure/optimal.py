"""The optimal plan on requests that it was not planned with, from the published series; no time is measured.

    services    service, group (PAPER or HELD_OUT), n requests, origin of their TTFTs
    cells       service, split, splits (their number), device, constrained, b; over the splits the medians of
                MEDIANS and the means of MEANS, and cut_mean, known_cut_mean, guarded_cut_mean; see `compared`
    policies    service, device, constrained, policy: mean_s, p99_s and over_budget on requests it was not planned
                with, averaged over random halves and budgets; CLAIRVOYANT knows these requests
    programme   constrained, repeat, and the columns of `programme.compared`, a row for each random case

A split is two parts of a service's requests: one to plan with, the other to evaluate on. RANDOM: halves drawn at
random; IN_TIME: the earlier half and the later; DAYS: one day and the next.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import optimal, programme
from artifact.analysis.optimal import DISCO, FLOOR, GUARDED, OPTIMAL, evaluate
from artifact.data import tables, traces
from artifact.data.parse import load
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.beyond.optimal import solve
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import plan_disco
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

TABLES = ("prompt_tokens", "devices", "services", "ttft_quantiles_as_parsed")
PAPER, HELD_OUT = "of the paper", "held out"
RANDOM, IN_TIME, DAYS = "random halves", "earlier and later half", "a day and the next"
FEWEST = 200  # requests of a service that is held out: a half tells the P99
MEDIANS = ("cut", "known_cut", "over_mean", "guarded_cut", "guarded_over_mean", "cut_alike", "over_mean_alike")
MEANS = ("over_budget", "disco_over_budget", "fallback")


@dataclass(frozen=True)
class Series:
    """TTFTs of a service in seconds, shape (n,), and their times in seconds since the first, ascending, if known."""

    name: str
    group: str
    ttft_s: Floats
    times_s: Floats | None
    origin: str


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_optimal` describes the settings. TraceError where a series is not there."""
    s = run.settings
    checks.count(s.splits, "splits"), checks.count(s.cases, "cases")
    prompts, devices = traces.lengths("alpaca"), traces.devices()
    every = all_series()
    run.expect(len(every) + 1)
    cells, policies = [], []
    for k, series in enumerate(every):
        rng = np.random.default_rng([s.seed, k])
        study = _Study(prompts, devices, s.budgets, [*splits(series, s.splits, rng)])
        found = run.piece_now(f"service {k}, {series.name}", study.measure)
        cells += [{"service": series.name} | row for row in found["cells"]]
        policies += [{"service": series.name} | row for row in found["policies"]]
    checked = run.piece_now("random cases", lambda: _programme(s.cases, s.seed))
    about = [{"service": o.name, "group": o.group, "n": o.ttft_s.size, "origin": o.origin} for o in every]
    named = {"services": about, "cells": cells, "policies": policies, "programme": checked}
    return {name: pd.DataFrame(rows) for name, rows in named.items()}


def all_series() -> list[Series]:
    """The paper's services, and those that are held out: no choice of the planner was made with them.

    Held out are all models of thefastest with at least FEWEST calls, over their hosts; llmperf's models over its
    services; and latencylab's endpoints of OpenAI together. Of gpt-4o-mini, whose series is not public, the requests
    are the quantiles of its table.
    """
    table = traces.service("gpt-4o-mini")
    drawn = table.ttft.quantile((np.arange(table.n) + 0.5) / table.n)
    found = [Series(table.name, PAPER, drawn, None, "committed quantiles, taken as parsed")]
    for name in ("deepseek-chat", "llama-3-70b", "command-r"):
        found.append(_in_time(name, PAPER, tables.series(name)))
    fastest = load("thefastest")
    for model, calls in fastest.groupby("model"):
        if len(calls) >= FEWEST and model not in {one.name for one in found}:
            found.append(_in_time(str(model), HELD_OUT, calls.sort_values("time", kind="stable")))
    pools: dict[str, list[pd.Series]] = {}
    for endpoint, calls in load("llmperf").groupby("endpoint"):
        pools.setdefault(f"llama-2-{str(endpoint).rpartition('_')[2]}, llmperf", []).append(calls["ttft_s"])
    labs = load("latencylab")
    pools["openai, latencylab"] = [labs["ttft_s"][labs["endpoint"].str.startswith("OpenAI")]]
    for name, parts in pools.items():
        found.append(Series(name, HELD_OUT, pd.concat(parts).to_numpy(), None, "public series"))
    return found


def _in_time(name: str, group: str, calls: pd.DataFrame) -> Series:
    since = (calls["time"] - calls["time"].iloc[0]).dt.total_seconds()
    return Series(name, group, calls["ttft_s"].to_numpy(), since.to_numpy(), "public series")


def splits(series: Series, count: int, rng: np.random.Generator) -> Iterator[tuple[str, Floats, Floats]]:
    """Kind of split, TTFTs to plan with, TTFTs to evaluate on: `count` random halves, and those by time.

    Days are 24 hours from the first request on, and are of use where each has at least 500 requests.
    """
    n, values = series.ttft_s.size, series.ttft_s
    for _ in range(count):
        order = rng.permutation(n)
        yield RANDOM, values[order[: n // 2]], values[order[n // 2 :]]
    if series.times_s is None:
        return
    yield IN_TIME, values[: n // 2], values[n // 2 :]
    day = series.times_s // 86_400
    days = [values[day == one] for one in np.unique(day)]
    if min(part.size for part in days) >= 500:
        yield from ((DAYS, before, after) for before, after in itertools.pairwise(days))


def compared(
    past: TTFTDistribution,
    future: TTFTDistribution,
    prompts: LengthDistribution,
    device: DeviceProfile,
    budget: float,
    constraint: Constraint,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Policies planned with F = past, all evaluated on F = future: numbers on the optimal plan, and on every policy.

    cut, over_mean               how far its P99 is below and its mean above those of DiSCo's rule, in percent, for
                                 the same share: the rule knows the future and is planned for the share that the
                                 optimal plan turned out to use there
    guarded_cut, guarded_over_mean   the same of the guarded plan
    known_cut                    cut of P99 against the same rule by the optimal plan that knows the future, within
                                 the share and the mean that the optimal plan turned out to have there
    cut_alike, over_mean_alike   against DiSCo's rule with the same past and budget
    over_budget, disco_over_budget   share used less b
    fallback                     whether too few samples made the plan DiSCo's
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of too few samples, counted as fallback
        plans = optimal.policies(budget, constraint, prompts, past, device)
        found = {name: evaluate(plan, prompts, future, device) for name, plan in plans.items()}
        ours, disco, guarded = found[OPTIMAL], found[DISCO], found[GUARDED]
        share, guarded_share = (min(one["used"], 1.0) for one in (ours, guarded))  # rounding can exceed it
        rule, other = (
            evaluate(plan_disco(constraint, prompts, future, b), prompts, future, device)
            for b in (share, guarded_share)
        )
        known = _known(prompts, future, device, share, constraint, ours["mean_s"] / rule["mean_s"] - 1)
    numbers = {
        "cut": 100 * (1 - ours["p99_s"] / rule["p99_s"]),
        "known_cut": 100 * (1 - known / rule["p99_s"]),
        "over_mean": 100 * (ours["mean_s"] / rule["mean_s"] - 1),
        "guarded_cut": 100 * (1 - guarded["p99_s"] / other["p99_s"]),
        "guarded_over_mean": 100 * (guarded["mean_s"] / other["mean_s"] - 1),
        "cut_alike": 100 * (1 - ours["p99_s"] / disco["p99_s"]),
        "over_mean_alike": 100 * (ours["mean_s"] / disco["mean_s"] - 1),
        "over_budget": ours["used"] - budget,
        "disco_over_budget": disco["used"] - budget,
        "fallback": float(plans[OPTIMAL].name == plans[DISCO].name),
    }
    return numbers, found


def _known(
    prompts: LengthDistribution,
    future: TTFTDistribution,
    device: DeviceProfile,
    share: float,
    constraint: Constraint,
    growth: float,
) -> float:
    """P99 in seconds of the optimal plan that knows the future, with this share and mean."""
    try:
        return solve(prompts, future, device, share, constraint, growth=growth + 1e-9).deadline_s
    except InputError:  # of many samples not every wait is considered, so that the least mean can be a little higher
        return solve(prompts, future, device, share, constraint, deadline_s=np.inf).deadline_s


@dataclass(frozen=True)
class _Study:
    """One service: every split, device, constraint and budget."""

    prompts: LengthDistribution
    devices: Mapping[str, DeviceProfile]
    budgets: Sequence[float]
    splits: Sequence[tuple[str, Floats, Floats]]

    def measure(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the tables cells and policies, but for the service."""
        cells, policies = [], []
        for split, past_s, future_s in self.splits:
            past, future = TTFTDistribution(past_s), TTFTDistribution(future_s)
            for constraint, (name, device) in itertools.product(Constraint, self.devices.items()):
                least_s = optimal.floor_mean(self.prompts, future, device, self.budgets, constraint)
                for b, mean_s in zip(self.budgets, least_s, strict=True):
                    keys: dict[str, Any] = {"split": split, "device": name, "constrained": constraint.value, "b": b}
                    numbers, found = compared(past, future, self.prompts, device, b, constraint)
                    p99_s = optimal.floor_p99(self.prompts, future, device, b, constraint)
                    found[FLOOR] = {"mean_s": mean_s, "p99_s": p99_s, "used": b}
                    cells.append(keys | numbers)
                    policies += [keys | {"policy": policy} | row for policy, row in found.items()]
        return {"cells": _over_splits(cells), "policies": _over_budgets(policies)}


def _over_splits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table cells."""
    grouped = pd.DataFrame(rows).groupby(["split", "device", "constrained", "b"], sort=False)
    table = grouped[[*MEDIANS]].median().join(grouped[["cut", "known_cut", "guarded_cut"]].mean().add_suffix("_mean"))
    table.insert(0, "splits", grouped.size())
    return _records(table.join(grouped[[*MEANS]].mean()))


def _over_budgets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table policies, of the random halves."""
    table = pd.DataFrame(rows)
    table = table[table["split"] == RANDOM].assign(over_budget=lambda found: found["used"] - found["b"])
    keys = ["device", "constrained", "policy"]
    return _records(table.groupby(keys, sort=False)[["mean_s", "p99_s", "over_budget"]].mean())


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.reset_index().to_dict("records")]


def _programme(count: int, seed: int) -> list[dict[str, Any]]:
    return [
        {"constrained": case.constraint.value, "repeat": repeat} | programme.compared(case)
        for case, repeat in programme.cases(count, seed)
    ]
