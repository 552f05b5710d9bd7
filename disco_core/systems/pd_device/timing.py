"""P/D-Device (arXiv 2508.09035): the cloud answers first, and sends no more than the device needs to catch up.

The prompt goes to both ends. The cloud's first token is shown at once; k more follow while the device prefills, let
out at an even pace tau so that the reader sees no gap; then the device decodes the rest and the cloud's slot is free.

The timing is a reconstruction, not the paper's: C cloud TTFT, t_c cloud time per token, l prompt length, n_l the
length refined to the share rho, p and d the device's prefill and decode rates, s the limit on time per output token.

    cloud token i = 0, 1, ...         C + i t_c; k + 1 in all
    prompt read by the device         A = T_d(n_l), C later if refined (rho < 1): refining takes the cloud's prefill
    device's first token              R = max(A, C + k t_c) + (k + 1) / p, as it then reads what the cloud has sent
    token i released, paced           C + i tau, the device's first included, so there are k + 1 gaps up to R:
    pace                              tau = max(t_c, (R - C) / (k + 1))

A device that would answer before C (only if rho = 1) wins the race: no token of the cloud is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import Ledger
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.systems.pd_device.refine import kept_tokens
from disco_core.workload import Workload

Bools = NDArray[np.bool_]
Number = TypeVar("Number", np.float64, np.int64)
Loss = Callable[[float], float] | ArrayLike


@dataclass(frozen=True, eq=False)
class Settings:
    """What P/D-Device is set to for each request, arrays of shape (n,).

    k          tokens the cloud sends after its first, at least 0
    rho        share of the prompt that the device reads, in (0, 1]; 1: as it is
    tau_s      seconds between released tokens up to the take-over
    ready_s    R, when the device's first token is expected; inf where it never takes over
    feasible   whether the limits can be kept; where not, the cloud makes the whole answer and no device is started
    """

    k: Ints
    rho: Floats
    tau_s: Floats
    ready_s: Floats
    feasible: Bools

    def __post_init__(self) -> None:
        k, rho = checks.seconds(self.k, "k", unit=" tokens"), checks.seconds(self.rho, "rho", unit="")
        if np.any(k != np.floor(k)):
            raise InputError(f"k must be whole numbers of at least 0, got {k[k != np.floor(k)][0]}")
        if k.max() > checks.MOST_TOKENS:
            raise InputError(f"k must be at most {checks.MOST_TOKENS}, got {k.max()}")
        if rho.min() <= 0 or rho.max() > 1:
            raise InputError(f"rho must lie in (0, 1], got {rho.min() if rho.min() <= 0 else rho.max()}")
        tau = checks.seconds(self.tau_s, "tau_s")
        ready = checks.seconds(self.ready_s, "ready_s", allow_inf=True)
        columns = {"k": k.astype(np.int64), "rho": rho, "tau_s": tau, "ready_s": ready}
        columns["feasible"] = np.asarray(self.feasible)
        if columns["feasible"].dtype != np.bool_:
            raise InputError(f"feasible must be True or False, got {self.feasible!r:.80}")
        for name, column in columns.items():
            if column.ndim != 1 or column.shape != k.shape:
                raise InputError(f"{name} must have one entry per request, shape {k.shape}, got {column.shape}")
            object.__setattr__(self, name, checks.frozen(column))

    def __len__(self) -> int:
        return self.k.size


@dataclass(frozen=True, eq=False)
class Answers:
    """How answers came out, arrays of shape (n,).

    ttft_s          seconds to the first token
    tpot_max_s      the largest gap between released tokens in seconds, NaN for an answer of one token
    finish_s        seconds to the release of the last token
    cloud_s         seconds that a slot of the cloud was held: from the request to its last token or its cancel
    cloud_tokens    tokens of the answer made by the cloud
    device_tokens   those made by the device
    taken_over      whether the device went on where the cloud had stopped
    ledger          prefill and decode tokens charged to each end
    """

    ttft_s: Floats
    tpot_max_s: Floats
    finish_s: Floats
    cloud_s: Floats
    cloud_tokens: Ints
    device_tokens: Ints
    taken_over: Bools
    ledger: Ledger


def pace(k: ArrayLike, behind_s: ArrayLike, cloud_token_s: ArrayLike, prefill_rate: float) -> Floats:
    """`tau = max(t_c, (R - C) / (k + 1))` in seconds, with R - C written out; arguments broadcast.

    behind_s   A - C: how long after the cloud's first token the device has read the prompt
    """
    bridge_s = _bridge(k, behind_s, cloud_token_s) / (np.asarray(k) + 1) + 1 / prefill_rate
    tau: Floats = np.maximum(cloud_token_s, bridge_s)
    return tau


def choose(
    cloud_ttft_s: ArrayLike,  # C
    cloud_token_s: ArrayLike,  # t_c
    device: DeviceProfile,
    prompt_tokens: ArrayLike,  # l
    output_tokens: ArrayLike,  # N
    tpot_limit_s: float,  # s
    rho: ArrayLike = (1.0,),
    loss: Loss | None = None,
    loss_limit: float = 0.0,
) -> Settings:
    """For each request the least k with `tau <= s`, over those rho whose quality loss is within its limit.

    cloud_ttft_s, cloud_token_s   seconds, shape (n,) or one for all; known at the latest with the first token
    prompt_tokens                 shape (n,)
    output_tokens                 expected length N of the answer, shape (n,) or one for all
    rho                           grid of shares, in (0, 1]; of several that need the same k, the largest
    loss                          quality loss of each rho, shape (grid,) or a function; needed if any rho is below 1

    With m = k + 1 and u = s - 1/p, `tau <= s` is `t_c <= s`, `m u >= A - C` and `m (t_c - u) <= t_c`. So k has to
    be large enough for the reader to wait for the device's prompt, and, if the device reads tokens more slowly than
    u allows, small enough for it to catch up with the cloud; the least is `ceil((A - C) / u) - 1`, if that will do.

    Not feasible, and left to the cloud alone (k = N - 1, rho = 1): `1/d > s`, or no `k <= N - 1` will do. A device
    that answers first needs no tokens: k = 0, tau = 1/d. InputError if a value or a shape is off.
    """
    checks.kind(device, DeviceProfile, "device")
    limit = checks.positive(tpot_limit_s, "tpot_limit_s")
    shares = _allowed(rho, loss, checks.number(loss_limit, "loss_limit"))[:, None]
    prompt = checks.tokens(prompt_tokens, "prompt_tokens")
    lengths = np.atleast_1d(checks.numbers(output_tokens, "output_tokens"))
    output = _each(checks.tokens(lengths, "output_tokens"), "output_tokens", prompt.size)
    first, token = _cloud(cloud_ttft_s, cloud_token_s, prompt.size)

    behind = _behind(device, prompt, shares, first)
    leads = behind < 0  # the device answers first
    k = np.where(leads, 0, _least_k(behind, token, output, device.prefill_rate, limit))
    possible = (k < output) & (1 / device.decode_rate <= limit)
    best = np.argmin(np.where(possible, k, output), axis=0)  # of equals the first, which is the largest rho
    at = best, np.arange(prompt.size)
    feasible, behind, leads = possible[at], behind[at], leads[at]
    k = np.where(feasible, k[at], output - 1)
    ready = first + np.where(leads, behind, _bridge(k, behind, token) + (k + 1) / device.prefill_rate)
    tau = np.where(leads, 1 / device.decode_rate, pace(k, behind, token, device.prefill_rate))
    return Settings(
        k,
        np.where(feasible, shares[best, 0], 1.0),
        np.where(feasible, tau, token),
        np.where(feasible, ready, np.inf),
        feasible,
    )


def simulate_pd(
    load: Workload,
    settings: Settings,
    cloud_ttft_s: ArrayLike,
    cloud_token_s: ArrayLike,
    device: DeviceProfile,
    planned: DeviceProfile | None = None,
) -> Answers:
    """Answers of true length N under the settings, with the cloud and the device as they turn out.

    load            prompts, and the true lengths of the answers; arrivals do not matter, no request waits for another
    cloud_ttft_s    C of each request, shape (n,) or one for all; cloud_token_s likewise
    device          as it is
    planned         as the pace takes it to be, by default the same: the pace follows from C, which is known when the
                    first token is there, and from this profile. A device that is later leaves a gap, an earlier one
                    waits for its turn. After the take-over tokens are released as they are decoded, 1/d apart.

    Where the settings are feasible both ends are started and charged their prompts, and a device that takes over also
    for the k + 1 tokens, which it reads on top of the prompt it has read. An answer of no more than k + 1 tokens is
    the cloud's. A late device is waited for: the cloud is not asked for more. InputError if a shape is off.
    """
    checks.kind(load, Workload, "load")
    checks.kind(settings, Settings, "settings")
    checks.kind(device, DeviceProfile, "device")
    expected = device if planned is None else checks.kind(planned, DeviceProfile, "planned")
    if len(settings) != len(load):
        raise InputError(f"settings must be one per request, {len(load)}, got {len(settings)}")
    first, token = _cloud(cloud_ttft_s, cloud_token_s, len(load))
    alone = cloud_only(load, first, token)
    prompt, length, k = load.prompt_tokens, load.output_tokens, settings.k
    behind = _behind(device, prompt, settings.rho, first)
    raced = settings.feasible & (behind < 0)
    taken_over = settings.feasible & ~raced & (length > k + 1)
    tau = pace(k, _behind(expected, prompt, settings.rho, first), token, expected.prefill_rate)
    tau = np.where(settings.feasible, tau, token)

    ready = first + np.maximum(_bridge(k, behind, token) + (k + 1) / device.prefill_rate, (k + 1) * tau)
    by_cloud = np.where(raced, 0, np.where(taken_over, k + 1, length))
    last_by_cloud = first + np.maximum(by_cloud - 1, 0) * tau
    begun = np.where(raced, first + behind, ready)  # the device's first token
    by_device = length - by_cloud
    tail = (by_device - 1) / device.decode_rate
    return Answers(
        np.where(raced, begun, first),
        _largest(
            np.where(by_cloud > 1, tau, np.nan),
            np.where(taken_over, begun - last_by_cloud, np.nan),
            np.where(by_device > 1, 1 / device.decode_rate, np.nan),
        ),
        np.where(by_device > 0, begun + tail, last_by_cloud),
        np.where(raced, begun, np.where(taken_over, first + k * token, alone.cloud_s)),
        by_cloud,
        by_device,
        taken_over,
        Ledger(
            prompt,
            by_cloud,
            (kept_tokens(prompt, settings.rho) + np.where(taken_over, k + 1, 0)) * settings.feasible,
            by_device,
        ),
    )


def cloud_only(load: Workload, cloud_ttft_s: ArrayLike, cloud_token_s: ArrayLike) -> Answers:
    """The baseline that P/D-Device relieves: the cloud makes every token, released as it is made."""
    checks.kind(load, Workload, "load")
    first, token = _cloud(cloud_ttft_s, cloud_token_s, len(load))
    length, none = load.output_tokens, np.zeros(len(load), np.int64)
    last = first + (length - 1) * token
    gap = np.where(length > 1, token, np.nan)
    ledger = Ledger(load.prompt_tokens, length, none, none)
    return Answers(first.copy(), gap, last, last, length, none, none.astype(np.bool_), ledger)


def device_only(load: Workload, device: DeviceProfile) -> Answers:
    """The other baseline: the device reads the whole prompt and makes every token."""
    checks.kind(load, Workload, "load")
    checks.kind(device, DeviceProfile, "device")
    first, length = device.ttft(load.prompt_tokens), load.output_tokens
    none = np.zeros(len(load), np.int64)
    gap = np.where(length > 1, 1 / device.decode_rate, np.nan)
    ledger = Ledger(none, none, load.prompt_tokens, length)
    last = first + (length - 1) / device.decode_rate
    return Answers(first, gap, last, none.astype(np.float64), none, length, none.astype(np.bool_), ledger)


def throughput(cloud_s: ArrayLike, slots: int = 1) -> float:
    """Answers per second that so many slots of the cloud carry, always busy: slots over the mean time one is held.

    inf where no answer holds a slot. The ratio of two of them says how much more traffic the same slots carry. A
    TTFT with queueing or network in it counts time in which no slot works, which understates the ratio.

    >>> throughput([0.5, 1.5], slots=4)
    4.0
    """
    held = float(checks.seconds(cloud_s, "cloud_s").mean())
    return checks.count(slots, "slots") / held if held > 0 else float("inf")


def _behind(device: DeviceProfile, prompt: Ints, rho: Floats, first: Floats) -> Floats:
    """A - C: a refined prompt is there at C, an unrefined one from the beginning."""
    read: Floats = device.ttft(kept_tokens(prompt, rho))
    return read - np.where(rho < 1, 0.0, first)


def _bridge(k: ArrayLike, behind_s: ArrayLike, cloud_token_s: ArrayLike) -> Floats:
    """Seconds from C until the device has read the prompt and the cloud has sent its k tokens."""
    found: Floats = np.maximum(behind_s, np.asarray(k) * np.asarray(cloud_token_s))
    return found


def _least_k(behind: Floats, token: Floats, output: Ints, prefill_rate: float, limit: float) -> Ints:
    """The least k with `tau <= s`, N or more where none below N will do; shape (grid, n)."""
    room = limit - 1 / prefill_rate  # u
    least = np.ceil(behind / room) - 1 if room > 0 else np.zeros_like(behind)
    near = np.clip(least, 1, output).astype(np.int64)
    found = np.broadcast_to(output, near.shape)
    for k in (near + 1, near, near - 1):  # the quotient is rounded: what decides is the pace itself
        found = np.where(pace(k, behind, token, prefill_rate) <= limit, k, found)
    return found


def _allowed(rho: ArrayLike, loss: Loss | None, loss_limit: float) -> Floats:
    """Those rho whose loss is within the limit, descending, shape (allowed,)."""
    grid = np.atleast_1d(checks.numbers(rho, "rho"))
    if grid.ndim != 1 or grid.min() <= 0 or grid.max() > 1:
        raise InputError(f"rho must be shares in (0, 1], got {rho!r:.80}")
    if loss is None and grid.min() < 1:
        raise InputError(f"loss is needed for every rho below 1, got rho {grid.min():g} without it")
    known = 0.0 * grid if loss is None else [loss(float(r)) for r in grid] if callable(loss) else loss
    lost = np.atleast_1d(checks.numbers(known, "loss"))
    if lost.shape != grid.shape:
        raise InputError(f"loss must be one per rho, {grid.size}, got shape {lost.shape}")
    if lost.min() > loss_limit:
        raise InputError(f"loss must be at most loss_limit {loss_limit:g} for some rho, the least is {lost.min():g}")
    return np.sort(grid[lost <= loss_limit])[::-1]


def _cloud(ttft_s: ArrayLike, token_s: ArrayLike, n: int) -> tuple[Floats, Floats]:
    first, token = checks.seconds(ttft_s, "cloud_ttft_s"), checks.seconds(token_s, "cloud_token_s")
    return _each(first, "cloud_ttft_s", n), _each(token, "cloud_token_s", n)


def _each(values: NDArray[Number], name: str, n: int) -> NDArray[Number]:
    if values.size != 1 and values.shape != (n,):
        raise InputError(f"{name} must be one number or one per request, shape ({n},), got {values.shape}")
    return np.broadcast_to(values.reshape(-1), (n,))


def _largest(*gaps: Floats) -> Floats:
    """The largest gap of each request, NaN where it has none."""
    found: Floats = np.fmax.reduce(gaps)
    return found
