"""Real devices' TTFT, which scatters around its line: what that changes for plans that take the line as exact.

Four models on an iPhone, from the committed tables: a line for each, and the quantiles of the ratios of measured TTFT
to it. Each request has a ratio of its own; in the measurements neighbours are alike (`lag1`), which no result here
depends on, since requests do not wait for one another. All numbers are expectations, without draws: those of
`simulate` with endless requests.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from artifact.analysis import budgets as spending
from artifact.analysis.optimal import DISCO, OPTIMAL
from artifact.data import traces
from artifact.errors import TraceError
from disco_core.beyond.optimal import solve
from disco_core.checks import Floats
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

CELL = ["service", "device", "constrained", "b"]
POLICIES = (DISCO, "Stoch", OPTIMAL)
PARTS = ("all", "second half")  # of the time order: those whose ratios are known
_LATE = 0.01 + 1e-12  # share of requests beyond P99, and what rounding may add
_STEP = 0.0005  # every level of the table is a multiple of it


def lines(part: str = "all") -> dict[str, DeviceProfile]:
    """Each model's line and decode rate over a part of the requests, by name: exact devices."""
    table = traces.table("device_ttft_as_parsed")
    rows = table[table["part"] == part].set_index("model")
    return {
        str(name): DeviceProfile(
            1 / float(row["s_per_token"]), float(row["decode_tok_per_s"]), float(row["startup_s"])
        )
        for name, row in rows.iterrows()
    }


def devices(part: str = "all") -> dict[str, DeviceProfile]:
    """The same devices with the spread that was measured, of one of PARTS."""
    table = traces.table("device_residuals_as_parsed")
    rows = table[table["part"] == part]
    return {name: replace(line, spread=_equal(rows[rows["model"] == name])) for name, line in lines(part).items()}


def _equal(rows: pd.DataFrame) -> Floats:
    """Equally likely ratios that have these quantiles."""
    copies = np.round(np.diff(rows["level"], prepend=0.0) / _STEP).astype(np.int64)
    if copies.sum() != round(1 / _STEP) or copies.min() < 1:
        raise TraceError("data/device_residuals_as_parsed.csv has other levels than it had; `git checkout data`")
    return np.repeat(rows["ratio"].to_numpy(np.float64), copies)


def longer(lengths: LengthDistribution, tokens: int) -> LengthDistribution:
    """The same prompts behind `tokens` more of a chat template."""
    return LengthDistribution(lengths.tokens + tokens, lengths.counts)


def evaluate(
    plan: DispatchPlan, prompts: LengthDistribution, ttft: TTFTDistribution, device: DeviceProfile
) -> dict[str, float]:
    """mean_s and p99_s of TTFT, and the share of the plan's constrained endpoint, for a device that may scatter.

    With waits w, server TTFT S and device TTFT D, which are independent, TTFT is the lesser of w_s + S and w_d + D.
    """
    assert plan.constraint is not None
    known = np.minimum(np.searchsorted(plan.prompt_tokens, prompts.tokens), plan.prompt_tokens.size - 1)
    chance = plan.probability[known] * (prompts.counts / prompts.counts.sum())[:, None]
    server, wait = plan.delays_s[:, known]
    ratio = TTFTDistribution([1.0] if device.spread is None else device.spread)
    line = device.ttft(prompts.tokens)[:, None]

    def later(t: float) -> float:
        with np.errstate(invalid="ignore"):
            return float((chance * ttft.sf(t - server) * ratio.sf((t - wait) / line)).sum())

    both = np.isfinite(server) & np.isfinite(wait)
    apart = np.where(both, wait, 0.0) - np.where(both, server, 0.0)
    # an endpoint starts where its wait ends before the other's first token
    server_starts = np.where(both, ratio.sf(-apart / line), np.isfinite(server))
    device_starts = np.where(both, ttft.sf(apart), np.isfinite(wait))
    started = (server_starts, device_starts)[plan.constraint.end]
    share = float((chance * prompts.tokens[:, None] * started).sum() / prompts.mean)
    return {"mean_s": _mean(chance, server, wait, line, ttft, ratio), "p99_s": _p99(later), "share": share}


def _mean(
    chance: Floats, server: Floats, wait: Floats, line: Floats, ttft: TTFTDistribution, ratio: TTFTDistribution
) -> float:
    """Mean TTFT in seconds; arrays of shape (lengths, choices)."""
    values, copies = np.unique(ratio.values_s, return_counts=True)
    first = wait[..., None] + line[..., None] * values  # of the device
    served = np.isfinite(server)[..., None]
    since = np.where(served, server[..., None], 0.0)
    least = np.where(served, since + ttft.mean_min(first - since), first)
    return float((chance * (least @ (copies / copies.sum()))).sum())


def _p99(later: Callable[[float], float]) -> float:
    """The least t in seconds, to a nanosecond, that at most 1 % of the requests exceed; `later(t)` is their share."""
    low, high = 0.0, 1.0
    while later(high) > _LATE:
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if later(middle) > _LATE else (low, middle)
    return round(high, 8)


@dataclass(frozen=True)
class Residuals:
    """Plans for exact devices, run on exact devices and on ones that scatter.

    services   by name
    prompt     lengths in tokens that plans are made for and requests have
    """

    services: Mapping[str, traces.Service]
    prompt: LengthDistribution

    def _run(self, plan: DispatchPlan, ttft: TTFTDistribution, device: DeviceProfile) -> dict[str, float]:
        return evaluate(plan, self.prompt, ttft, device)

    def _optimal(self, c: Constraint, b: float, ttft: TTFTDistribution, device: DeviceProfile) -> DispatchPlan:
        return solve(self.prompt, ttft, device, b, c).plan

    def exact_and_real(self, devices: Mapping[str, DeviceProfile], budgets: Iterable[float]) -> pd.DataFrame:
        """A row for each service, device, constraint, b and policy of POLICIES, planned for the line.

        mean_s, p99_s and share of the constrained endpoint on the exact device; the same with `real_`, where TTFT
        scatters; mean and p99, the change in percent, and moved, that of the share.
        """
        rows = []
        for (s, service), (d, device), c, b in product(
            self.services.items(), devices.items(), Constraint, list(budgets)
        ):
            ttft, exact = service.ttft, replace(device, spread=None)
            plans = spending.spending(b, c, self.prompt, ttft) | {OPTIMAL: self._optimal(c, b, ttft, exact)}
            for policy in POLICIES:
                key = {"service": s, "device": d, "constrained": c.value, "b": b, "policy": policy}
                line, real = (self._run(plans[policy], ttft, one) for one in (exact, device))
                rows.append(key | line | {f"real_{name}": value for name, value in real.items()})
        table = pd.DataFrame(rows)
        changes = {x: 100 * (table[f"real_{x}_s"] / table[f"{x}_s"] - 1) for x in ("mean", "p99")}
        return table.assign(**changes, moved=(table["real_share"] - table["share"]).round(12) + 0.0)

    def drifted(self, budgets: Iterable[float]) -> pd.DataFrame:
        """The optimal plan made with the line of the first half of the requests, run on the second half.

        mean and p99: by how many percent the TTFT exceeds that of the optimal plan made with the second half's line,
        moved: by how much the share does. Plans of DiSCo and Stoch hold no time of the device and cannot be outdated.
        """
        rows, before, informed, world = [], lines("first half"), lines("second half"), devices("second half")
        for (s, service), d, c, b in product(self.services.items(), world, Constraint, list(budgets)):
            plans = (self._optimal(c, b, service.ttft, line[d]) for line in (before, informed))
            old, new = (self._run(plan, service.ttft, world[d]) for plan in plans)
            key = {"service": s, "device": d, "constrained": c.value, "b": b, "policy": f"{OPTIMAL}, earlier line"}
            excess = {x: 100 * (old[f"{x}_s"] / new[f"{x}_s"] - 1) for x in ("mean", "p99")}
            rows.append(key | excess | {"moved": old["share"] - new["share"]})
        return pd.DataFrame(rows)


def cuts(runs: pd.DataFrame) -> pd.DataFrame:
    """DiSCo's cut of P99 TTFT against Stoch in percent for each pair, averaged over the budgets.

    runs   of `exact_and_real`
    Returns service, device, constrained; exact, real, and change, the difference in points.
    """
    wide = runs.pivot(index=CELL, columns="policy", values=["p99_s", "real_p99_s"])
    cut = {
        name: 100 * (1 - wide[column, DISCO] / wide[column, "Stoch"])
        for name, column in (("exact", "p99_s"), ("real", "real_p99_s"))
    }
    pairs = pd.DataFrame(cut).groupby(CELL[:-1], sort=False).mean()
    return pairs.assign(change=pairs["real"] - pairs["exact"]).reset_index()
