"""What live answers of two endpoints show: TTFTs with bands, charges, the simulator's prediction, a replay of pairs.

All of it is of one measurement, `measure_live`. Every policy answered the same prompts with the same draws, so bands
are a paired bootstrap: a replicate draws prompts and takes every policy's answers to each of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.analysis import scenario
from artifact.data import traces
from artifact.measure import answers, ends
from artifact.measure.store import Measured
from disco_core.checks import Floats
from disco_core.cost import Constraint, Ledger
from disco_core.dispatch import DispatchPlan, plan_server_only
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.simulate import Result, simulate
from disco_core.workload import Workload

POLICIES = ("server only", "device only", "Stoch-D", "DiSCo-D", "Stoch-S", "DiSCo-S")
DIRECT, EMULATED = "raw", "last hop"  # a measurement's names for the two settings of the server
REPLAYED = 10_000  # replayed requests, at least
HEADERS = {  # what a reader sees in place of a column's name
    "setting": "network delay",
    "server_share": "server share",
    "device_share": "device share",
    "dollars_device_constrained": "$, device constrained",
    "dollars_server_constrained": "$, server constrained",
    "migrated_share": "migrated",
    "tbt_p99_s": "TBT P99 (s)",
    "live_mean_s": "live mean (s)",
    "simulated_mean_s": "simulated mean (s)",
    "live_p90_s": "live P90 (s)",
    "simulated_p90_s": "simulated P90 (s)",
    "mean_error_percent": "error (%)",
    "mean_s": "mean (s)",
    "p99_s": "P99 (s)",
    "p99_low_s": "from",
    "p99_high_s": "to",
    "simulated_p99_s": "simulated P99 (s)",
    "over_budget": "spent less b",
    "below_stoch": "P99 below Stoch's",
}


@dataclass(frozen=True)
class LiveRun:
    """The answers of a measurement, and what its plans were made from.

    requests      a row for each answer: setting, policy, request, prompt_tokens, ttft_s, charges
    calibration   pairs of TTFTs, both endpoints asked at once, that plans were made from
    pairs         the other pairs, for the replay
    settings      of the server, DIRECT or both, the one that is judged last
    server_ttft   F of the server itself, without emulated network delay
    """

    requests: pd.DataFrame
    calibration: pd.DataFrame
    pairs: pd.DataFrame
    rates: pd.DataFrame
    settings: tuple[str, ...]
    server: str
    service: str
    budget: float
    longest: int
    device: DeviceProfile
    server_ttft: TTFTDistribution
    seed: int

    @property
    def emulated(self) -> bool:
        """Whether the server's first token is also delayed to a recorded commercial TTFT."""
        return EMULATED in self.settings

    def names(self) -> dict[str, str]:
        """What each setting is called in figures and tables."""
        direct = "local server" if self.server == "local" else self.server.removeprefix("openai:")
        return {DIRECT: direct, EMULATED: "emulated network delay"}

    def network(self) -> dict[str, str]:
        """How each setting's network delay came about."""
        return {DIRECT: "none" if self.server == "local" else "real", EMULATED: "emulated"}

    def of(self, setting: str, policy: str) -> pd.DataFrame:
        """The answers of one policy in one setting."""
        return self.requests[(self.requests.setting == setting) & (self.requests.policy == policy)]

    def report(self) -> str:
        """How many answers, how fast the endpoints were, and how TTFT goes with the prompt, in a few lines."""
        every = pd.concat([self.calibration, self.pairs])
        r = {end: np.corrcoef(every.prompt_tokens, every[f"{end}_s"])[0, 1] for end in ("server", "device")}
        server_rate = answers.decode_rate("server", self.rates)
        failed = self.requests.failures.notna() | self.requests.ttft_s.isna()
        return "\n".join(
            [
                f"{len(self.calibration)} pairs for the plans, {len(self.pairs)} for the replay",
                f"{len(self.requests)} answers, {failed.sum()} of them with an endpoint that failed",
                f"device: prefills {self.device.prefill_rate:.0f} and decodes {self.device.decode_rate:.0f} tokens/s",
                f"server: TTFT mean {self.server_ttft.mean:.2f} s, P99 {self.server_ttft.quantile(0.99):.2f} s; "
                f"decodes {server_rate:.0f} tokens/s without load",
                f"correlation of TTFT and prompt length: server {r['server']:.2f}, device {r['device']:.2f}",
            ]
        )


def read(measured: Measured, seed: int) -> LiveRun:
    """The run of a measurement; `seed` of what is drawn to compare it."""
    pairs, rates, given = measured["pairs"], measured["rates"], measured.settings
    calibration = pairs[pairs.calibration]
    return LiveRun(
        requests=measured["requests"],
        calibration=calibration,
        pairs=pairs[~pairs.calibration],
        rates=rates,
        settings=(DIRECT, EMULATED) if given["server"] == "local" else (DIRECT,),
        server=given["server"],
        service=given["service"],
        budget=given["budget"],
        longest=given["longest"],
        device=answers.device_profile(calibration, rates),
        server_ttft=TTFTDistribution(calibration.server_s),
        seed=seed,
    )


def ttft(run: LiveRun, replicates: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """TTFT of every policy, and how far DiSCo's mean is below random dispatch's (%), each with its 95 % band."""
    rows, cuts = list[dict[str, Any]](), list[dict[str, Any]]()
    draws = np.random.default_rng([run.seed, 7])
    for setting in run.settings:
        asked = run.requests[run.requests.setting == setting]
        wide = asked.pivot(index="request", columns="policy", values="ttft_s").dropna()
        chosen = draws.integers(len(wide), size=(replicates, len(wide)))
        for policy in POLICIES:
            times = wide[policy].to_numpy()
            row = {"setting": setting, "policy": policy, "answers": len(wide)} | _statistics(times)
            for name, band in _statistics(times[chosen]).items():
                row[f"{name}_low"], row[f"{name}_high"] = np.quantile(band, [0.025, 0.975])
            rows.append(row)
        cuts += [_cut(wide, letter, chosen) | {"setting": setting} for letter in "DS"]
    return pd.DataFrame(rows), pd.DataFrame(cuts)


def _statistics(times_s: Floats) -> dict[str, Any]:
    """Mean, P50 and P90 over the last axis."""
    p50, p90 = np.quantile(times_s, [0.5, 0.9], axis=-1, method="inverted_cdf")
    return {"mean_s": times_s.mean(axis=-1), "p50_s": p50, "p90_s": p90}


def _cut(wide: pd.DataFrame, letter: str, chosen: NDArray[np.int64]) -> dict[str, Any]:
    disco, stoch = (wide[f"{policy}-{letter}"].to_numpy() for policy in ("DiSCo", "Stoch"))
    low, high = np.quantile(100 * (1 - disco[chosen].mean(axis=1) / stoch[chosen].mean(axis=1)), [0.025, 0.975])
    cut = 100 * (1 - disco.mean() / stoch.mean())
    return {"policy": f"DiSCo-{letter}", "cut": cut, "cut_low": low, "cut_high": high}


def spending(run: LiveRun) -> pd.DataFrame:
    """What each policy spent: shares of prompt tokens, dollars per million answers, migrations, the reader's TBT."""
    rows = []
    for (setting, policy), asked in run.requests.groupby(["setting", "policy"], sort=False):
        total = asked.prompt_tokens.sum()
        row = {"setting": setting, "policy": policy}
        for end in ("server", "device"):
            row[f"{end}_share"] = (asked.prompt_tokens * asked[f"{end}_started"]).sum() / total
        ledger = Ledger(*asked[answers.CHARGES].to_numpy().T)
        for constraint in Constraint:
            prices = scenario.cost_model(traces.service(run.service), constraint)
            row[f"dollars_{constraint.value}_constrained"] = 1e6 * ledger.cost(prices).mean()
        row["migrated_share"], row["tbt_p99_s"] = (asked.migrated_at > 0).mean(), asked.tbt_p99_s.median()
        rows.append(row)
    return pd.DataFrame(rows)


def agreement(run: LiveRun) -> pd.DataFrame:
    """Live TTFTs beside the simulator's, from the same prompts, delays and emulated network delays."""
    rows = []
    for setting in run.settings:
        for policy in POLICIES:
            simulated, live = _simulated(run, setting, policy), run.of(setting, policy).ttft_s
            means = {"live_mean_s": live.mean(), "simulated_mean_s": simulated.mean()}
            p90 = [_statistics(times)["p90_s"] for times in (live.to_numpy(), simulated.ravel())]
            error = 100 * (simulated.mean() / live.mean() - 1)
            tail = {"live_p90_s": p90[0], "simulated_p90_s": p90[1], "mean_error_percent": error}
            rows.append({"setting": setting, "policy": policy} | means | tail)
    return pd.DataFrame(rows)


def _simulated(run: LiveRun, setting: str, policy: str, times: int = 20) -> Floats:
    """TTFTs of the live requests, shape (times, requests): the server's TTFT is drawn, the device's is its line."""
    rows = run.of(setting, policy).sort_values("request")
    n, rng = len(rows), np.random.default_rng([run.seed, 9])
    workload = Workload(np.zeros(n), rows.prompt_tokens, np.ones(n, int))
    delays_s, profile = rows[["server_delay_s", "device_delay_s"]].to_numpy().T, scenario.server(run.server_ttft)
    first_s = [np.maximum(rows.held_s, run.server_ttft.sample(n, rng)) for _ in range(times)]
    plan, drawn = plan_server_only(), {"delays_s": delays_s}  # the delays that the policy drew live
    results = [simulate(workload, plan, profile, run.device, ttft_s=x, **drawn) for x in first_s]
    return np.stack([result.ttft_s for result in results])


def replay(run: LiveRun, replicates: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The recorded pairs through every plan, and the share of replicates in which DiSCo's P99 is below Stoch's.

    Each pair is replayed several times, with an emulated network delay drawn anew. The bootstrap draws prompts, with
    all their pairs. Beside it stands the simulator's P99, from the same draws and the endpoints' profiles alone.
    """
    repeat = -(-REPLAYED // len(run.pairs)) if run.emulated else 1
    again = run.pairs.loc[run.pairs.index.repeat(repeat)]
    hop, n = traces.service(run.service).ttft, len(again)
    x = hop.sample(n, np.random.default_rng([run.seed, 11])) if run.emulated else np.zeros(n)
    f = scenario.with_network_delay(hop, run.calibration.server_s) if run.emulated else run.server_ttft
    recorded_s = np.stack([np.maximum(x, again.server_s), again.device_s])
    drawn_s = np.maximum(x, run.server_ttft.sample(n, np.random.default_rng([run.seed, 14])))
    asked = Workload(np.zeros(n), again.prompt_tokens, np.ones(n, int))
    chosen, rows, p99 = _drawn_pairs(run, replicates), list[dict[str, Any]](), dict[str, Floats]()
    for name, (plan, _) in scenario.plans(ends.prompts(run.longest).tokens, f, run.budget).items():
        result, simulated = (_replayed(run, plan, asked, times) for times in (recorded_s, drawn_s))
        by_pair = result.ttft_s.reshape(len(run.pairs), repeat)
        p99[name] = np.array([_p99(by_pair[one]) for one in chosen])
        row = {"policy": name, "mean_s": by_pair.mean(), "p99_s": _p99(by_pair)}
        row["p99_low_s"], row["p99_high_s"] = np.quantile(p99[name], [0.025, 0.975])
        rows.append(row | {"simulated_p99_s": _p99(simulated.ttft_s), "over_budget": result.budget_used - run.budget})
    below = {letter: float((p99[f"DiSCo-{letter}"] < p99[f"Stoch-{letter}"]).mean()) for letter in "DS"}
    table, of_policy = pd.DataFrame(rows), {f"DiSCo-{letter}": share for letter, share in below.items()}
    return table.assign(below_stoch=table.policy.map(of_policy)), below


def _replayed(run: LiveRun, plan: DispatchPlan, asked: Workload, ttft_s: Floats) -> Result:
    rng = np.random.default_rng([run.seed, 13])
    return simulate(asked, plan, scenario.server(run.server_ttft), run.device, ttft_s=ttft_s, rng=rng)


def _p99(times_s: Floats) -> float:
    return float(np.quantile(times_s, 0.99, method="inverted_cdf"))


def _drawn_pairs(run: LiveRun, replicates: int) -> list[NDArray[np.int64]]:
    """Places of pairs for each replicate: prompts are drawn, with all their pairs."""
    of_prompt = [np.flatnonzero(run.pairs["prompt"] == one) for one in run.pairs["prompt"].unique()]
    shape = replicates, len(of_prompt)
    drawn = np.random.default_rng([run.seed, 15]).integers(len(of_prompt), size=shape)
    return [np.concatenate([of_prompt[i] for i in one]) for one in drawn]
