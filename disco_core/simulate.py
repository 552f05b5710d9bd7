"""A plan and a rule over arrays of requests: the race between the two endpoints, hand-overs and costs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import CostModel, End, Ledger
from disco_core.delivery import ROUNDING_S, experience
from disco_core.dispatch import DispatchPlan
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, ServerProfile
from disco_core.migration import MigrationRule
from disco_core.workload import Workload

_BLOCK = 1 << 18  # tokens simulated at a time with a rule: a few matrices of 2 MB, which fit in a cache


@dataclass(frozen=True, eq=False)
class Result:
    """One simulated workload; arrays have one entry per request, shape (n,).

    ttft_s          seconds to the first token
    winner          the endpoint it came from, an `End`, as int8
    server_started, device_started   whether that endpoint was started in the race, bool
    ledger          prefill and decode tokens charged to each endpoint
    cost            $ per request, None without prices

    With a rule:
    migrated_at     tokens generated when the answer moved to the other endpoint, 0 where it did not
    delay_num       tokens generated after they were due
    tbt_p99_s       P99 of the gaps between released tokens in seconds, NaN for an answer of one token
    qoe             Andes' quality of experience in [0, 1] at the rule's reading rate
    cost_without    $ per request of the same race without a hand-over, None without prices
    """

    load: Workload
    plan: DispatchPlan
    ttft_s: Floats
    winner: NDArray[np.int8]
    server_started: NDArray[np.bool_]
    device_started: NDArray[np.bool_]
    ledger: Ledger
    cost: Floats | None
    migrated_at: Ints | None = None
    delay_num: Ints | None = None
    tbt_p99_s: Floats | None = None
    qoe: Floats | None = None
    cost_without: Floats | None = None

    @property
    def server_share(self) -> float:
        """Prompt tokens the server was started for, over all prompt tokens."""
        return self._share(self.server_started)

    @property
    def device_share(self) -> float:
        """Prompt tokens the device was started for, over all prompt tokens."""
        return self._share(self.device_started)

    def _share(self, started: NDArray[np.bool_]) -> float:
        # of the race alone: the prefill of a hand-over is charged, but does not use the budget
        return float(self.load.prompt_tokens @ started / self.load.prompt_tokens.sum())

    @property
    def budget_used(self) -> float:
        """Share of the plan's constrained endpoint; NaN for a plan without a budget."""
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
    rule: MigrationRule | None = None,
    *,
    rng: np.random.Generator | None = None,
    ttft_s: ArrayLike | None = None,
    delays_s: ArrayLike | None = None,
) -> Result:
    """Race the two endpoints for every request, and hand over in mid-answer where the rule says so.

    An endpoint starts iff its delay is smaller than the other's first-token time; at a tie the server wins. The
    loser is cancelled at the winner's first token. A started endpoint is charged the full prompt; the winner also
    every output token, and at a tie the loser its first.

    A hand-over costs the target a prefill of the prompt and all generated tokens, and takes as long as its TTFT for
    them: `T_d(l + n)` for the device, for the server a draw from F of its own. The source stops at once. A device
    with a spread is as fast at the hand-over, relative to its line, as for the request's prompt.

    rng        draws the server's TTFT from F, then the device's, if it has a spread, then the plan's delays: policies
               given equal seeds see equal TTFTs; with a rule, last the server's TTFT as a target
    ttft_s     replaces the first draw: the server's TTFT, shape (n,), or the first two: both endpoints' TTFT,
               (endpoints, n); with a rule, a server that takes over needs that time again
    delays_s   replaces the plan's delays: shape (endpoints, n), inf for never
    InputError if a shape is wrong, a time is negative or NaN, or a draw is needed and rng is missing.
    """
    if cost is not None:
        checks.instance_of(cost, CostModel, "cost")
    times, delays = drawn(load, plan, server, device, rng, ttft_s, delays_s)
    (server_ttft, device_ttft), (server_delay, device_delay) = times, delays
    server_first = server_delay + server_ttft
    device_first = device_delay + device_ttft
    device_started = device_delay < server_first
    # second half: both would answer at the moment they start; the server wins the tie
    server_started = (server_delay < device_first) | ~device_started
    won_by_device = (device_first < server_first) | ~server_started
    winner = won_by_device.view(np.int8)
    started = (server_started, device_started)
    first_s = np.minimum(server_first, device_first)
    tied = server_started & device_started & (server_first == device_first)
    ledger = _ledger(load, winner, started, load.output_tokens, tied)
    result = Result(load, plan, first_s, winner, *started, ledger, None if cost is None else ledger.cost(cost))
    if rule is None:
        return result
    takeover_s = server_ttft if ttft_s is not None or rng is None else server.ttft.sample(len(load), rng)
    checks.instance_of(rule, MigrationRule, "rule")
    # a device that is slow with a prompt is in a slow phase, which outlasts the answer
    ratio = np.ones(len(load)) if device.spread is None else device_ttft / device.ttft(load.prompt_tokens)
    return replace(result, **_migrate(result, rule, server, device, (takeover_s, ratio), cost, tied))


def _ledger(
    load: Workload,
    winner: NDArray[np.int8],
    started: tuple[Any, Any],
    made_by_winner: Ints,
    tied: NDArray[np.bool_],
) -> Ledger:
    """Tokens charged: the winner generated `made_by_winner` of the answer, the other endpoint the rest.

    tied   where the device, which loses a tie, had its first token at that moment as well
    """
    by_device = np.where(winner == End.DEVICE, made_by_winner, load.output_tokens - made_by_winner)
    prefill = [load.prompt_tokens * began for began in started]
    # where the answer moved, the other endpoint also prefilled the prompt and the generated tokens
    migrated = made_by_winner < load.output_tokens
    handed_over = (load.prompt_tokens + made_by_winner) * migrated
    return Ledger(
        prefill[End.SERVER] + handed_over * (winner == End.DEVICE),
        load.output_tokens - by_device,
        prefill[End.DEVICE] + handed_over * (winner == End.SERVER),
        by_device + tied,
    )


def _migrate(
    race: Result,
    rule: MigrationRule,
    server: ServerProfile,
    device: DeviceProfile,
    takeover: tuple[Floats, Floats],
    cost: CostModel | None,
    tied: NDArray[np.bool_],
) -> dict[str, Any]:
    """Generate every answer token by token, blocks of requests at a time, and move it where the rule says so.

    takeover   seconds that the server takes to take over, and the device's TTFT over its line, both of shape (n,)
    """
    load, blocks = race.load, list(_blocks(race.load.output_tokens))
    columns = [_answers(race, rule, server, device, takeover, rows) for rows in blocks]
    back = np.argsort(np.concatenate(blocks))
    migrated_at, delay_num, tbt_p99_s, qoe = (np.concatenate(column)[back] for column in zip(*columns, strict=True))
    made = np.where(migrated_at > 0, migrated_at, load.output_tokens)
    ledger = _ledger(load, race.winner, (race.server_started, race.device_started), made, tied)
    return {
        "ledger": ledger,
        "cost": None if cost is None else ledger.cost(cost),
        "migrated_at": migrated_at,
        "delay_num": delay_num,
        "tbt_p99_s": tbt_p99_s,
        "qoe": qoe,
        "cost_without": race.cost,
    }


def _blocks(length: Ints) -> Iterator[Ints]:
    """The requests in blocks of similar length, since a matrix is as wide as its longest answer."""
    order = np.argsort(length, kind="stable")
    _, doublings = np.frexp(length[order])
    for alike in np.split(order, np.flatnonzero(np.diff(doublings)) + 1):
        rows = max(1, _BLOCK // int(length[alike[-1]]))
        yield from (alike[at : at + rows] for at in range(0, alike.size, rows))


def _answers(
    race: Result,
    rule: MigrationRule,
    server: ServerProfile,
    device: DeviceProfile,
    takeover: tuple[Floats, Floats],
    rows: Ints,
) -> tuple[Ints, Ints, Floats, Floats]:
    """migrated_at, delay_num, tbt_p99_s and qoe of a block of requests, from matrices of shape (requests, tokens)."""
    prompt, length = (tokens[rows, None] for tokens in (race.load.prompt_tokens, race.load.output_tokens))
    first_s, winner = race.ttft_s[rows, None], race.winner[rows, None]
    n = np.arange(1, int(length.max()) + 1)
    gap = np.array([1 / server.decode_rate, 1 / device.decode_rate])
    # summed token by token, as a clock advances, so that a live stream has exactly the same times
    steps = np.where(n == 1, first_s, np.where(winner == End.DEVICE, device.token_s(prompt), gap[End.SERVER]))
    moves = rule.moves(prompt, n, np.cumsum(steps, axis=1) - first_s) & (n < length)
    if rule.target is not None:
        moves &= winner != rule.target
    at = np.where(moves.any(axis=1), moves.argmax(axis=1) + 1, 0)[:, None]
    server_s, ratio = (values[rows, None] for values in takeover)
    takeover_s = server_s if rule.target is End.SERVER else ratio * device.takeover_s(prompt + np.maximum(at, 1))
    after = np.where(n == at + 1, takeover_s, gap[1 - winner])
    generated = np.cumsum(np.where((at > 0) & (n > at), after, steps), axis=1)
    due = first_s + (n - 1) / rule.reading_rate
    answered = n <= length
    delays = ((generated > due + ROUNDING_S) & answered).sum(axis=1)
    released = np.maximum(generated, due)
    gaps = np.where(answered[:, 1:], np.diff(released, axis=1), np.inf)
    rank = np.ceil(0.99 * (length[:, 0] - 1)).astype(np.int64) - 1
    ranked = np.sort(gaps, axis=1)
    p99 = np.full(rank.size, np.nan)
    several = rank >= 0
    p99[several] = ranked[several, rank[several]]
    return at[:, 0], delays, p99, experience(released, length[:, 0], reading_rate=rule.reading_rate)


def drawn(
    load: Workload,
    plan: DispatchPlan,
    server: ServerProfile,
    device: DeviceProfile,
    rng: np.random.Generator | None = None,
    ttft_s: ArrayLike | None = None,
    delays_s: ArrayLike | None = None,
) -> tuple[tuple[Floats, Floats], Floats]:
    """TTFTs and the plan's delays, shape (n,) for each endpoint, drawn or given as in `simulate`."""
    expected_types: list[tuple[object, type, str]] = [(load, Workload, "load"), (plan, DispatchPlan, "plan")]
    expected_types += [(server, ServerProfile, "server"), (device, DeviceProfile, "device")]
    for value, expected, name in expected_types:
        checks.instance_of(value, expected, name)
    times = _ttft(load, server, device, rng, ttft_s)
    if delays_s is None:
        return times, plan.draw(load.prompt_tokens, rng)
    return times, _given_delays(delays_s, len(load))


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
        return server.ttft.sample(n, rng), device.ttft(load.prompt_tokens) * device.ratios(n, rng)
    times = checks.seconds(given, "ttft_s")
    if times.shape == (n,):
        return times, device.ttft(load.prompt_tokens) * device.ratios(n, rng)
    if times.shape == (len(End), n):
        return times[End.SERVER], times[End.DEVICE]
    raise InputError(f"ttft_s must have shape ({n},) or ({len(End)}, {n}), got {times.shape}")


def _given_delays(values: ArrayLike, n: int) -> Floats:
    delays = checks.seconds(values, "delays_s", allow_inf=True)
    if delays.shape != (len(End), n):
        raise InputError(f"delays_s must have shape ({len(End)}, {n}), got {delays.shape}")
    if np.isinf(delays.min(axis=0)).any():
        raise InputError("delays_s starts neither endpoint for some request: one of its two delays must be finite")
    return delays
