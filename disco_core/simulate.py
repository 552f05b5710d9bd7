"""A plan over arrays of requests: the race between the two ends, who won it and what it cost."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats
from disco_core.cost import CostModel, End, Ledger
from disco_core.dispatch import DispatchPlan
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, ServerProfile
from disco_core.workload import Workload


@dataclass(frozen=True, eq=False)
class Result:
    """One simulated workload; arrays have one entry per request, shape (n,).

    ttft_s          seconds to the first token
    winner          the end it came from, an `End`, as int8
    server_started, device_started   whether that end was started, bool
    ledger          prefill and decode tokens charged to each end
    cost            $ per request, None without prices
    """

    load: Workload
    plan: DispatchPlan
    ttft_s: Floats
    winner: NDArray[np.int8]
    server_started: NDArray[np.bool_]
    device_started: NDArray[np.bool_]
    ledger: Ledger
    cost: Floats | None

    @property
    def server_share(self) -> float:
        """Prompt tokens the server was started for, over all prompt tokens."""
        return float(self.ledger.server_prefill.sum() / self.load.prompt_tokens.sum())

    @property
    def device_share(self) -> float:
        """Prompt tokens the device was started for, over all prompt tokens."""
        return float(self.ledger.device_prefill.sum() / self.load.prompt_tokens.sum())

    @property
    def budget_used(self) -> float:
        """Share of the plan's scarce end; NaN for a plan without a budget."""
        if self.plan.constraint is None:
            return float("nan")
        return (self.server_share, self.device_share)[self.plan.constraint.end]

    def summary(self) -> dict[str, float]:
        """Mean and P50, P95, P99 TTFT in seconds, shares, budget used, and mean cost in $ per request."""
        p50, p95, p99 = np.quantile(self.ttft_s, [0.5, 0.95, 0.99], method="inverted_cdf")
        return {
            "mean_ttft_s": float(self.ttft_s.mean()),
            "p50_ttft_s": float(p50),
            "p95_ttft_s": float(p95),
            "p99_ttft_s": float(p99),
            "server_share": self.server_share,
            "device_share": self.device_share,
            "budget_used": self.budget_used,
            "mean_cost": float("nan") if self.cost is None else float(self.cost.mean()),
        }


def simulate(
    load: Workload,
    plan: DispatchPlan,
    server: ServerProfile,
    device: DeviceProfile,
    cost: CostModel | None = None,
    *,
    rng: np.random.Generator | None = None,
    ttft_s: ArrayLike | None = None,
    delays_s: ArrayLike | None = None,
) -> Result:
    """Race the two ends for every request.

    An end starts iff its delay is smaller than the other's first-token time; at a tie the server wins. The loser
    is cancelled at the winner's first token. A started end is charged the full prompt; the winner also every
    output token.

    rng        draws the server's TTFT from F, then the plan's delays: policies given equal seeds see equal TTFTs
    ttft_s     replaces the first draw: the server's TTFT per request, shape (n,), or both ends', shape (ends, n)
    delays_s   replaces the second: shape (ends, n), inf for never
    InputError if a shape is off, a time is negative or NaN, or a draw is needed and rng is missing.
    """
    kinds: list[tuple[object, type, str]] = [(load, Workload, "load"), (plan, DispatchPlan, "plan")]
    kinds += [(server, ServerProfile, "server"), (device, DeviceProfile, "device")]
    for value, expected, name in kinds + ([] if cost is None else [(cost, CostModel, "cost")]):
        checks.kind(value, expected, name)
    n = len(load)
    server_ttft, device_ttft = _ttft(load, server, device, rng, ttft_s)
    if delays_s is None:
        server_delay, device_delay = plan.draw(load.prompt_tokens, rng)
    else:
        server_delay, device_delay = _given_delays(delays_s, n)
    server_first = server_delay + server_ttft
    device_first = device_delay + device_ttft
    device_started = device_delay < server_first
    # the second half: two ends that would answer at the very moment they start; the tie is the server's
    server_started = (server_delay < device_first) | ~device_started
    won_by_device = (device_first < server_first) | ~server_started
    ledger = Ledger(
        load.prompt_tokens * server_started,
        load.output_tokens * ~won_by_device,
        load.prompt_tokens * device_started,
        load.output_tokens * won_by_device,
    )
    return Result(
        load=load,
        plan=plan,
        ttft_s=np.minimum(server_first, device_first),
        winner=won_by_device.view(np.int8),
        server_started=server_started,
        device_started=device_started,
        ledger=ledger,
        cost=None if cost is None else ledger.cost(cost),
    )


def _ttft(
    load: Workload,
    server: ServerProfile,
    device: DeviceProfile,
    rng: np.random.Generator | None,
    given: ArrayLike | None,
) -> tuple[Floats, Floats]:
    n = len(load)
    if given is None:
        if rng is None:
            raise InputError("simulate draws the server's TTFT: pass rng, or ttft_s in its place")
        return server.ttft.sample(n, rng), device.ttft(load.prompt_tokens)
    times = checks.seconds(given, "ttft_s")
    if times.shape == (n,):
        return times, device.ttft(load.prompt_tokens)
    if times.shape == (len(End), n):
        return times[End.SERVER], times[End.DEVICE]
    raise InputError(f"ttft_s must have shape ({n},) or ({len(End)}, {n}), got {times.shape}")


def _given_delays(values: ArrayLike, n: int) -> Floats:
    delays = checks.seconds(values, "delays_s", allow_inf=True)
    if delays.shape != (len(End), n):
        raise InputError(f"delays_s must have shape ({len(End)}, {n}), got {delays.shape}")
    if np.isinf(delays.min(axis=0)).any():
        raise InputError("delays_s starts neither end for some request: one of its two delays must be finite")
    return delays
