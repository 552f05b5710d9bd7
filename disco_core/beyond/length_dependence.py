"""F conditional on prompt length, with one parameter, for servers whose TTFT grows with the prompt.

The paper's servers show no such dependence; a small one, as on a local network, does, since prefill takes a good part
of its TTFT. A plan for one F of all lengths then starts the device more often for long prompts than intended.
"""

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError
from disco_core.latency import TTFTDistribution

_SLOPES = np.append(0.0, np.geomspace(1e-6, 10, 200))  # per token; 7 % apart, far less than data can tell
_ATOMS = 2000  # of the distribution for one length
_KEYS = 64  # lengths with a distribution of their own


@dataclass(frozen=True, eq=False)
class LengthDependence:
    """Server TTFT as `S = (1 + slope l)^weight R`, where R does not depend on the prompt length l.

    correlation   Spearman's, of TTFT and length; NaN where one of them is constant
    p_value       of independence, two-sided: among random permutations the correlation has mean 0 and variance
                  `1 / (n - 1)`, and is close to normal
    slope         per token, by least squares of log TTFT
    weight        in [0, 1], `1 - 1 / z^2` for a correlation of z of those standard deviations, and 0 below one: with
                  few samples, or without dependence, what remains is the F of all lengths together
    scaled_s      the samples of R, ascending, in seconds
    """

    correlation: float
    p_value: float
    slope: float
    weight: float
    scaled_s: Floats

    @classmethod
    def fit(cls, prompt_tokens: ArrayLike, ttft_s: ArrayLike) -> "LengthDependence":
        """From observed lengths and TTFTs, both of shape (n,).

        A TTFT that falls with length counts as independent.
        """
        length, time = checks.tokens(prompt_tokens, "prompt_tokens"), checks.seconds(ttft_s, "ttft_s")
        if time.shape != length.shape:
            raise InputError(f"ttft_s must have one entry per length, {length.size}, got shape {time.shape}")
        if np.ptp(length) == 0 or np.ptp(time) == 0:
            return cls(float("nan"), 1.0, 0.0, 0.0, np.sort(time))
        correlation = float(np.corrcoef(_ranks(length), _ranks(time))[0, 1])
        z = correlation * sqrt(length.size - 1)
        slope = _slope(length[time > 0], time[time > 0]) if z > 1 else 0.0
        weight = 1 - 1 / z**2 if slope > 0 else 0.0
        scale = (1 + slope * length) ** weight
        return cls(correlation, erfc(abs(z) / sqrt(2)), slope, weight, np.sort(time / scale))

    def ttft(self, prompt_tokens: ArrayLike) -> "TTFTDistribution | dict[int, TTFTDistribution]":
        """F for prompts of these lengths, as `plan_optimal` takes it: one for all if they do not differ."""
        if self.weight == 0:
            return TTFTDistribution(self.scaled_s)
        lengths = np.unique(checks.tokens(prompt_tokens, "prompt_tokens"))
        if lengths.size > _KEYS:
            scale = np.log1p(self.slope * lengths)
            lengths = lengths[np.unique(np.searchsorted(scale, np.linspace(scale[0], scale[-1], _KEYS)))]
        samples, levels = self.scaled_s, None
        if samples.size > _ATOMS:
            levels = np.arange(1, _ATOMS + 1) / _ATOMS
            samples = np.quantile(samples, levels, method="inverted_cdf")
        scales = zip(lengths.tolist(), (1 + self.slope * lengths) ** self.weight, strict=True)
        if levels is None:
            return {l: TTFTDistribution(samples * scale) for l, scale in scales}
        return {l: TTFTDistribution.from_quantiles(levels, samples * scale) for l, scale in scales}


def _ranks(values: "Floats | Ints") -> Floats:
    """Ranks, the mean of them for equal values."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _slope(length: Ints, time: Floats) -> float:
    """Of the slopes the one with the least variance of `log time - log(1 + slope length)`."""
    each, which = np.unique(length, return_inverse=True)
    spread = [np.var(np.log(time) - np.log1p(slope * each)[which]) for slope in _SLOPES]
    return float(_SLOPES[int(np.argmin(spread))])
