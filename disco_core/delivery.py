"""When tokens are due, when they are released to the reader, and the quality of experience that follows.

All times are seconds since the request was meant to start; a response's tokens are a one-dimensional array in
order. The reader reads r_c tokens per second; token i = 1, 2, ... is due at `TTFT + (i - 1) / r_c`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError

READING_RATE = 4.8  # r_c, tokens per second; Andes, section 2
LISTENING_RATE = 3.3  # tokens per second; Andes, section 2
TTFT_EXPECTED = 1.0  # seconds; Andes' default
ROUNDING_S = 1e-9  # seconds: the rounding of float sums makes no token late


def deadlines(generated_s: ArrayLike, reading_rate: float = READING_RATE) -> Floats:
    """When each token is due, shape (tokens,): the first when it is generated, then one every 1 / r_c."""
    generated = _generated(generated_s)
    due: Floats = generated[0] + np.arange(generated.size) / checks.positive(reading_rate, "reading_rate")
    return due


def release(generated_s: ArrayLike, reading_rate: float = READING_RATE) -> Floats:
    """When the reader gets each token, shape (tokens,): `max(generated, deadline)`."""
    return np.maximum(_generated(generated_s), deadlines(generated_s, reading_rate))


def delayed(generated_s: ArrayLike, reading_rate: float = READING_RATE) -> NDArray[np.bool_]:
    """Which tokens were generated after they were due, shape (tokens,)."""
    return _generated(generated_s) > deadlines(generated_s, reading_rate) + ROUNDING_S


def time_between_tokens(released_s: ArrayLike) -> Floats:
    """TBT: the gaps between released tokens, shape (tokens - 1,)."""
    return np.diff(_generated(released_s))


def quality_of_experience(
    released_s: ArrayLike, ttft_expected: float = TTFT_EXPECTED, reading_rate: float = READING_RATE
) -> float:
    """Andes' QoE in [0, 1]: the area under the curve of digested tokens divided by that under the ideal curve.

    Ideal: the first token at `ttft_expected`, then `reading_rate` tokens per second (TDS). The reader digests
    released tokens at no more than that rate and not before the ideal curve starts, so an early first token does
    not make up for a later stall. Both areas end when the slower of the two curves has finished.

    >>> quality_of_experience([0.2, 0.4, 0.6])
    1.0
    """
    released = _generated(released_s)
    return float(experience(released[None], np.array([released.size]), ttft_expected, reading_rate)[0])


def experience(
    released_s: Floats, tokens: Ints, ttft_expected: float = TTFT_EXPECTED, reading_rate: float = READING_RATE
) -> Floats:
    """Andes' QoE of many answers, shape (answers,): the first `tokens[i]` times of row i of `released_s` count."""
    step = 1.0 / checks.positive(reading_rate, "reading_rate")
    rank = np.arange(released_s.shape[1])
    counts = rank < tokens[:, None]
    ideal = checks.number(ttft_expected, "ttft_expected") + rank * step
    # the reader begins token i once it is released and the last one is digested: a running maximum without its slope
    begun = np.maximum(np.maximum.accumulate(released_s - rank * step, axis=1) + rank * step, ideal)
    end = np.take_along_axis(begun, tokens[:, None] - 1, axis=1) + step
    # each token adds a ramp of one step and then stays digested until the end
    digested, wanted = (np.sum((end - at - step / 2) * counts, axis=1) for at in (begun, ideal))
    quality: Floats = digested / wanted
    return quality


def _generated(times_s: ArrayLike) -> Floats:
    times = checks.seconds(times_s, "token times")
    if times.ndim != 1 or np.any(np.diff(times) < 0):
        raise InputError("token times must be one-dimensional and must not descend")
    return times
