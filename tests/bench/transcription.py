"""The paper's two dispatch algorithms written down line by line, as plain Python over plain lists.

Each request of the planning window is one step, the distribution F is a sorted list. It is what the planner's
speed is measured against, and a second opinion on its result.
"""

from bisect import bisect_right
from math import ceil


def make_f(samples):
    """F as a sorted list."""
    return sorted(samples)


def cdf(f, t):
    return bisect_right(f, t) / len(f)


def inverse(f, q):
    return f[max(ceil(q * len(f) - 1e-9) - 1, 0)]


def device_constrained(lengths, f, b, alpha=0.05):
    """Wait per length: w_tail for all, then 0 from the shortest on while the budget lasts."""
    tail = inverse(f, 1 - min(alpha, b))
    mean = sum(lengths) / len(lengths)
    p = {}
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


def server_constrained(lengths, b):
    """Threshold l_th: the shortest that keeps at least (1 - b) of all prompt tokens on the device."""
    total, kept, threshold = sum(lengths), 0, 0
    for l in sorted(lengths):
        if l > threshold and kept >= (1 - b) * total - 1e-9:
            break
        kept += l
        threshold = l
    return threshold
