"""DiSCo-D's budget given to the requests that a forecast, or an oracle, prefers: TTFT against the share spent.

The device is constrained. Models learn from the first half of a service's requests; the 20 % after it set the
threshold that would have spent the budget b there, as forecasts of a model's training part are too good; the last
30 % are served. DiSCo-D plans with F of all requests before those. The oracles choose on the served part itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis import forecasts, foresight, scenario
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint, End
from disco_core.dispatch import DispatchPlan, plan_disco
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.simulate import simulate
from disco_core.workload import LengthDistribution, Workload

CONSTANT, DISCO = "training median", "DiSCo-D"  # the forecast that never changes; the plan without a forecast
ORACLES = {"oracle": foresight.oracle_mean, "oracle of the tail": foresight.oracle_tail}  # of the mean, of P99
POLICIES = (CONSTANT, DISCO, *forecasts.PREDICTORS, *ORACLES)
MEASURES = ("mean", "p99")


@dataclass(frozen=True)
class Scheduler:
    """A service's requests, and what they are served with.

    calls       in order of time, as of `traces.calls`
    prompts     lengths, of which `copies` are drawn with `rng` for each request
    replicates  of the block bootstrap; 0 for no bands
    tail        alpha of DiSCo-D
    seed        of the models, of the random choices of the plans and of the bootstrap
    """

    calls: pd.DataFrame
    prompts: LengthDistribution
    copies: int
    replicates: int
    tail: float
    seed: int
    rng: np.random.Generator

    @cached_property
    def served(self) -> pd.DataFrame:
        """The last 30 % of the requests, with every forecast made at that point."""
        return forecasts.forecast(self.calls, seed=self.seed)

    @cached_property
    def _parts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        # forecasts of models that learned from the first half: those that set the threshold, and those served
        later, split_s = forecasts.forecast(self.calls, 0.5, seed=self.seed), self.served["time_s"].iloc[0]
        early = later["time_s"] < split_s
        return later[early].reset_index(drop=True), later[~early].reset_index(drop=True)

    @cached_property
    def _ttft(self) -> TTFTDistribution:
        return TTFTDistribution(self.calls["ttft_s"][self.calls["time_s"] < self.served["time_s"].iloc[0]])

    @cached_property
    def _tokens(self) -> tuple[Ints, Ints]:
        past, test = (self.prompts.sample(self.copies * len(part), self.rng) for part in self._parts)
        return past, test

    @cached_property
    def _ttft_s(self) -> tuple[Floats, Floats]:
        past, test = (np.tile(part["ttft_s"], self.copies) for part in self._parts)
        return past, test

    @cached_property
    def _replicates(self) -> Ints:
        # positions of the series itself, then of every bootstrap replicate
        n = len(self._parts[1])
        first = np.arange(n)[None]
        if not self.replicates:
            return first
        return np.vstack([first, forecasts.blocks(n, self.replicates, np.random.default_rng(self.seed))])

    def worth(self, devices: Mapping[str, DeviceProfile], budgets: Iterable[float]) -> pd.DataFrame:
        """One row per device, budget and policy: share spent, mean and P99 TTFT, cuts of both and their bands.

        Thresholds come from earlier requests, so the share spent is not exactly b. So that nothing is gained by
        spending less or more, a cut is against the training median where that spends the same share, interpolated
        between its two nearest budgets. An oracle is compared at the b it is allowed: it leaves unspent what would
        save nothing.
        """
        rows = []
        budgets = list(budgets)
        for name, device in devices.items():
            runs = [self.run(CONSTANT, b, device) for b in np.arange(1, 41) / 40]
            shares, curve = [share for share, _ in runs], [ttft_s for _, ttft_s in runs]
            for b in budgets:
                for policy in POLICIES:
                    spent, ttft_s = self.run(policy, b, device)
                    at = b if policy in ORACLES else spent
                    k = int(np.clip(np.searchsorted(shares, at), 1, len(shares) - 1))
                    part = (at - shares[k - 1]) / (shares[k] - shares[k - 1])
                    base_s = (1 - part) * curve[k - 1] + part * curve[k]
                    key = {"device": name, "b": b, "policy": policy, "spent": spent}
                    rows.append(key | _measures(ttft_s, np.round(100 * (1 - ttft_s / base_s), 6) + 0.0))  # never -0
        return pd.DataFrame(rows)

    def run(self, policy: str, b: float, device: DeviceProfile) -> tuple[float, Floats]:
        """Share spent; mean and P99 TTFT of the series and of every replicate, shape (2, replicates + 1)."""
        tokens, server_s = self._tokens[1], self._ttft_s[1]
        plan = plan_disco(Constraint.DEVICE, self.prompts, self._ttft, b, tail=self.tail)
        device_s = self._device_delay(policy, b, device, plan)
        load = Workload(np.zeros(tokens.size), tokens, tokens)
        delays_s = np.stack([np.zeros_like(device_s), device_s])
        result = simulate(load, plan, scenario.server(self._ttft), device, ttft_s=server_s, delays_s=delays_s)
        ttft_s = result.ttft_s.reshape(self.copies, -1)
        p99_s = [np.quantile(ttft_s[:, drawn], 0.99, method="inverted_cdf") for drawn in self._replicates]
        return result.device_share, np.stack([ttft_s.mean(axis=0)[self._replicates].mean(axis=1), p99_s])

    def _device_delay(self, policy: str, b: float, device: DeviceProfile, plan: DispatchPlan) -> Floats:
        """Seconds until each request's device starts; inf for never."""
        tokens, server_s = self._tokens[1], self._ttft_s[1]
        if policy == DISCO:
            delays_s: Floats = plan.draw(tokens, np.random.default_rng(self.seed))[End.DEVICE]
            return delays_s
        if policy in ORACLES:
            return np.where(ORACLES[policy](server_s, device.ttft(tokens), tokens, b), 0.0, np.inf)
        wait_s, rng = float(self._ttft.quantile(1 - min(self.tail, b))), np.random.default_rng(self.seed)
        past, test = self._parts
        score, past_score = (
            foresight.worth(np.tile(part[policy], self.copies), device.ttft(l), l) + 1e-9 * rng.random(l.size)
            for part, l in ((test, tokens), (past, self._tokens[0]))
        )
        limit = foresight.threshold(past_score, self._ttft_s[0], wait_s, self._tokens[0], b)
        return np.where(score > limit, 0.0, wait_s)


def _measures(ttft_s: Floats, cuts: Floats) -> dict[str, Any]:
    row = {"mean_s": ttft_s[0, 0], "p99_s": ttft_s[1, 0]}
    for measure, cut in zip(MEASURES, cuts, strict=True):
        row[f"{measure}_cut"] = cut[0]
        if cut.size > 1:
            row[f"{measure}_cut_low"], row[f"{measure}_cut_high"] = np.quantile(cut[1:], [0.025, 0.975])
    return row


def lines(worth: pd.DataFrame) -> pd.DataFrame:
    """The lines of a figure of `worth`: device, policy, measure, value in seconds and the share spent.

    Each measure has the oracle that minimises it; an oracle stands at the share that it is allowed.
    """
    parts = []
    for measure, oracle in zip(MEASURES, ORACLES, strict=True):
        part = worth[worth["policy"].isin([oracle]) | ~worth["policy"].isin(ORACLES)]
        share = part["spent"].where(part["policy"] != oracle, part["b"])
        parts.append(part[["device"]].assign(policy=part["policy"].replace(oracle, "oracle"), share=share))
        parts[-1] = parts[-1].assign(measure=f"{measure.replace('p', 'P')} TTFT (s)", value=part[f"{measure}_s"])
    return pd.concat(parts, ignore_index=True)


def at_budget(worth: pd.DataFrame, b: float) -> pd.DataFrame:
    """Cuts at one budget as text, with their bands where there are some: a row for each device and policy."""
    rows = worth[worth["b"] == b].set_index(["device", "policy"])
    text = rows.filter(like="cut").map("{:.1f}".format)
    table = {}
    for measure, label in {"mean": "mean TTFT", "p99": "P99 TTFT"}.items():
        cut = f"{measure}_cut"
        band = " (" + text[f"{cut}_low"] + " to " + text[f"{cut}_high"] + ")" if f"{cut}_low" in text else ""
        table[f"cut of {label}, %"] = text[cut] + band
    return pd.DataFrame(table)
