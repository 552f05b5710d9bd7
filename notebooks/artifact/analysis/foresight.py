"""What a scheduler gains from a forecast of each request's TTFT at DiSCo-D's budget, and the bound by an oracle.

The device is constrained. Every request is sent to the server at once; the scheduler only chooses for which requests
the device starts at once too. Requests are ranked by the time saved per prompt token, `(TTFT - T_d(l)) / l`: with a
forecast in place of TTFT (a constant one ranks the shortest prompts first, as DiSCo-D does), or, as a bound, with the
TTFT itself. All arrays have one entry per request, shape (n,).
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError


def worth(ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike) -> Floats:
    """Seconds saved per prompt token if the device starts at once; negative where the server is faster."""
    server, device, tokens = _requests(ttft_s, device_s, prompt_tokens)
    return (server - device) / tokens


def threshold(score: ArrayLike, ttft_s: ArrayLike, wait_s: float, prompt_tokens: ArrayLike, budget: float) -> float:
    """The score above which the device starts at once, so that these requests just stay within the budget b.

    For all others the device starts after `wait_s` if there is no token by then, as in DiSCo-D; that counts as well.

    score    what requests are ranked by, such as `worth` of a forecast
    ttft_s   the TTFTs that followed
    Returns -inf if the budget is enough for all, inf if the devices that start after `wait_s` alone exceed it.
    """
    ranked = checks.numbers(score, "score")
    server, _, tokens = _requests(ttft_s, ttft_s, prompt_tokens)
    b = checks.fraction(budget, "budget")
    late = server > wait_s
    order = np.argsort(-ranked, kind="stable")
    spent = tokens @ late + np.cumsum((tokens * ~late)[order])
    if tokens @ late > b * tokens.sum():
        return float("inf")
    fits = int(np.searchsorted(spent, b * tokens.sum(), side="right"))
    return float(ranked[order[fits]]) if fits < ranked.size else float("-inf")


def oracle_mean(ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike, budget: float) -> NDArray[np.bool_]:
    """For which requests the device starts to minimise mean TTFT: the largest true `worth` first, within the budget.

    At most one request away from the optimum. The device does not start where the server is faster, so its share of
    the prompt tokens is at most b.
    """
    gain = worth(ttft_s, device_s, prompt_tokens)
    _, _, tokens = _requests(ttft_s, device_s, prompt_tokens)
    order = np.argsort(-gain, kind="stable")
    within = np.cumsum(tokens[order]) <= checks.fraction(budget, "budget") * tokens.sum()
    start = np.zeros(tokens.size, np.bool_)
    start[order[within & (gain[order] > 0)]] = True
    return start


def oracle_tail(
    ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike, budget: float, level: float = 0.99
) -> NDArray[np.bool_]:
    """For which requests the device starts to minimise `F^-1(level)` of TTFT with a share b of the prompt tokens.

    For a quantile of t, all but `n - ceil(level n)` requests need a first token by t: the longest prompts are left
    out, and the smallest t within the budget comes from bisection.
    """
    server, device, tokens = _requests(ttft_s, device_s, prompt_tokens)
    allowed = checks.fraction(budget, "budget") * tokens.sum()
    exempt = tokens.size - int(np.ceil(checks.fraction(level, "level") * tokens.size - 1e-9))

    def started(t: float) -> NDArray[np.bool_] | None:
        slow = server > t
        left_out = exempt - int((slow & (device > t)).sum())
        if left_out < 0:
            return None
        helped = np.flatnonzero(slow & (device <= t))
        start = np.zeros(tokens.size, np.bool_)
        start[helped[np.argsort(-tokens[helped], kind="stable")][left_out:]] = True
        return start if tokens @ start <= allowed else None

    times = np.unique([server, device])
    start = started(times[bisect_left(times, True, key=lambda t: started(t) is not None)])
    assert start is not None, "at the longest TTFT of the server no device is needed"
    return start


def _requests(ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike) -> tuple[Floats, Floats, Ints]:
    server, device = checks.seconds(ttft_s, "ttft_s"), checks.seconds(device_s, "device_s")
    tokens = checks.tokens(prompt_tokens, "prompt_tokens")
    if not server.shape == device.shape == tokens.shape:
        raise InputError(
            "ttft_s, device_s and prompt_tokens must have one entry per request, got "
            f"{server.size}, {device.size} and {tokens.size}"
        )
    return server, device, tokens
