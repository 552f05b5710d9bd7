"""What a scheduler could do with a forecast of each request's TTFT, at DiSCo-D's budget, and the most it could do.

The device is scarce. Every request asks the server at once; all that is chosen is whose device starts at once. What
is worth most is the largest saving per prompt token, `(TTFT - T_d(l)) / l`, so requests are ranked by it: with a
forecast in the place of TTFT (one that never changes ranks the shortest prompts first, which is DiSCo-D), or, as a
bound, with the TTFT itself. All arrays have one entry per request, shape (n,).
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError


def worth(ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike) -> Floats:
    """Seconds that the device at once would save per prompt token, negative where the server were sooner."""
    server, device, tokens = _requests(ttft_s, device_s, prompt_tokens)
    return (server - device) / tokens


def threshold(score: ArrayLike, ttft_s: ArrayLike, wait_s: float, prompt_tokens: ArrayLike, budget: float) -> float:
    """The score above which a device is to start at once, so that these requests just do not exceed the budget b.

    The others' devices start after `wait_s` if no token has come, as in DiSCo-D, and are paid for where they do.

    score    what requests are ranked by, such as `worth` of a forecast
    ttft_s   what their TTFTs then were
    Returns -inf where the budget is enough for all, inf where the waiting ones alone exceed it.
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
    """Whose device starts, for the least mean TTFT: the largest true `worth` first, while the budget lasts.

    Within one request of the optimum. Where the server is sooner the device is not started, so the share of prompt
    tokens is at most b.
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
    """Whose device starts, for the least `F^-1(level)` of TTFT that a share b of the prompt tokens can buy.

    To have it at t, all but `n - ceil(level n)` requests must have a first token by t: the longest prompts are left
    out, and the least t within the budget is found by halving.
    """
    server, device, tokens = _requests(ttft_s, device_s, prompt_tokens)
    allowed = checks.fraction(budget, "budget") * tokens.sum()
    spared = tokens.size - int(np.ceil(checks.fraction(level, "level") * tokens.size - 1e-9))

    def started(t: float) -> NDArray[np.bool_] | None:
        slow = server > t
        left_out = spared - int((slow & (device > t)).sum())
        if left_out < 0:
            return None
        helped = np.flatnonzero(slow & (device <= t))
        start = np.zeros(tokens.size, np.bool_)
        start[helped[np.argsort(-tokens[helped], kind="stable")][left_out:]] = True
        return start if tokens @ start <= allowed else None

    times = np.unique([server, device])
    found = started(times[bisect_left(times, True, key=lambda t: started(t) is not None)])
    assert found is not None, "at the longest TTFT of the server no device is needed"
    return found


def _requests(ttft_s: ArrayLike, device_s: ArrayLike, prompt_tokens: ArrayLike) -> tuple[Floats, Floats, Ints]:
    server, device = checks.seconds(ttft_s, "ttft_s"), checks.seconds(device_s, "device_s")
    tokens = checks.tokens(prompt_tokens, "prompt_tokens")
    if not server.shape == device.shape == tokens.shape:
        raise InputError(
            "ttft_s, device_s and prompt_tokens must have one entry per request, got "
            f"{server.size}, {device.size} and {tokens.size}"
        )
    return server, device, tokens
