"""The paper's two dispatch algorithms transcribed line by line, in plain Python with lists.

The distribution F is a sorted list, and each request of the planning window is one step. The planner's speed and its
results are compared with it; nothing else uses it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil


def make_f(samples: Sequence[float]) -> list[float]:
    """F as a sorted list of TTFTs in seconds."""
    return sorted(samples)


def cdf(f: Sequence[float], t: float) -> float:
    """`F(t)`."""
    return bisect_right(f, t) / len(f)


def inverse(f: Sequence[float], q: float) -> float:
    """`F^-1(q)`."""
    return f[max(ceil(q * len(f) - 1e-9) - 1, 0)]


def device_constrained(lengths: Sequence[int], f: Sequence[float], b: float, alpha: float = 0.05) -> dict[int, float]:
    """Wait per length: w_tail for all, then 0, beginning with the shortest, while the budget lasts."""
    tail = inverse(f, 1 - min(alpha, b))
    mean = sum(lengths) / len(lengths)
    p: dict[int, float] = {}
    for l in lengths:
        p[l] = p.get(l, 0) + 1 / len(lengths)
    wait = dict.fromkeys(p, tail)
    rest = (b - (1 - cdf(f, tail))) * mean
    for l in sorted(p):
        need = p[l] * l * cdf(f, tail)
        if rest >= need:
            wait[l] = 0.0
            rest -= need
        else:
            wait[l] = inverse(f, cdf(f, tail) - rest / (p[l] * l))
            break
    return wait


def server_constrained(lengths: Sequence[int], b: float) -> int:
    """Threshold l_th: the shortest that keeps at least (1 - b) of all prompt tokens on the device."""
    total, kept, threshold = sum(lengths), 0, 0
    for l in sorted(lengths):
        if l > threshold and kept >= (1 - b) * total - 1e-9:
            break
        kept += l
        threshold = l
    return threshold
