"""How fast an endpoint is: the server's time to first token as a distribution, the device's as a line.

DiSCo rests on this difference: the server's TTFT varies with load and hardly depends on the prompt, the
device's is steady and grows linearly with the prompt, `T_d(l) = l / prefill_rate + startup`. Plans take that time as
exact; a simulation may draw it around the line instead.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats
from disco_core.errors import InputError


class TTFTDistribution:
    """F, the empirical distribution of time to first token: an atom at every sample.

    Parameters: `samples_s`, finite seconds of at least 0, any order, at least one.
    `F^-1(q)` is the smallest sample x with `F(x) >= q`; nothing is interpolated.

    >>> ttft = TTFTDistribution([0.3, 0.2, 0.2, 4.0])
    >>> float(ttft.cdf(0.2)), float(ttft.quantile(0.75)), float(ttft.mean_min(1.0))
    (0.5, 0.3, 0.425)
    """

    values_s: Floats  # ascending, shape (atoms,)
    cumulative: Floats  # F at and below each atom, shape (atoms,), ends in 1

    def __init__(self, samples_s: ArrayLike) -> None:
        values_s = np.sort(checks.seconds(samples_s, "samples_s"), axis=None)
        self._set(values_s, np.arange(1, values_s.size + 1) / values_s.size, equal_weights=True)

    @classmethod
    def from_quantiles(cls, levels: ArrayLike, values_s: ArrayLike) -> "TTFTDistribution":
        """F from a committed table: `values_s[i]` is `F^-1(levels[i])`.

        A value's weight is the gap to the level before it, so `quantile(levels[i]) == values_s[i]`. Levels ascend
        strictly within [0, 1] and end at 1; values do not descend; both have shape (n,).
        """
        level, value = checks.numbers(levels, "levels"), checks.seconds(values_s, "values_s")
        if level.shape != value.shape or level.ndim != 1:
            raise InputError(f"levels {level.shape} and values_s {value.shape} must be one-dimensional and match")
        if level[0] < 0 or level[-1] != 1:
            raise InputError(f"levels must start at 0 or above and end at 1, got {level[0]} ... {level[-1]}")
        for name, array, falls in (("levels", level, np.diff(level) <= 0), ("values_s", value, np.diff(value) < 0)):
            if falls.any():
                at = int(np.argmax(falls))
                raise InputError(f"{name} must ascend, got {array[at]} and then {array[at + 1]} at {at + 1}")
        return cls._of(value.copy(), level.copy())

    @classmethod
    def mixture(cls, parts: "list[TTFTDistribution]", weights: ArrayLike) -> "TTFTDistribution":
        """The mixture that draws from `parts[i]` with probability proportional to `weights[i]`, shape (parts,)."""
        pool = [checks.instance_of(part, TTFTDistribution, "parts") for part in parts]
        share = checks.seconds(weights, "weights", unit="")
        if share.shape != (len(pool),) or share.max() == 0:
            raise InputError(f"weights must be {len(pool)} numbers, not all 0, got {weights!r:.80}")
        pool, share = [part for part, s in zip(pool, share, strict=True) if s > 0], share[share > 0] / share.max()
        share /= share.sum()
        atoms = np.concatenate([part.values_s for part in pool])
        mass = np.concatenate([s * np.diff(p.cumulative, prepend=0.0) for s, p in zip(share, pool, strict=True)])
        order = np.argsort(atoms, kind="stable")
        # a sum of rounded masses can fall short of the level it stands for, and F^-1 would skip an atom
        cumulative = np.minimum(np.cumsum(mass[order]) + 1e-13, 1.0)
        cumulative[-1] = 1.0
        return cls._of(atoms[order], cumulative)

    @classmethod
    def _of(cls, values_s: Floats, cumulative: Floats) -> "TTFTDistribution":
        new = cls.__new__(cls)
        new._set(values_s, cumulative, equal_weights=False)
        return new

    def _set(self, values_s: Floats, cumulative: Floats, *, equal_weights: bool) -> None:
        self.values_s = checks.read_only(values_s, copy=False)
        self.cumulative = checks.read_only(cumulative, copy=False)
        self._equal_weights = equal_weights

    def cdf(self, t: ArrayLike) -> Floats:
        """`F(t) = P(TTFT <= t)`, same shape as t."""
        below = np.searchsorted(self.values_s, checks.numbers(t, "t"), side="right")
        probability: Floats = np.where(below > 0, self.cumulative[below - 1], 0.0)[()]
        return probability

    def sf(self, t: ArrayLike) -> Floats:
        """`1 - F(t) = P(TTFT > t)`: the probability that an endpoint which waits t is started."""
        return 1.0 - self.cdf(t)

    def quantile(self, q: ArrayLike) -> Floats:
        """`F^-1(q)`, the smallest atom x with `F(x) >= q`; q in [0, 1], any shape."""
        level = checks.seconds(q, "q", unit="")
        if level.max() > 1:
            raise InputError(f"q must lie in [0, 1], got {level.max()}")
        return self.values_s[np.searchsorted(self.cumulative, level, side="left")]

    def mean_min(self, x: ArrayLike) -> Floats:
        """`E[min(TTFT, x)]` in seconds: the mean TTFT if another endpoint answers at x, which may be inf."""
        bound = checks.numbers(x, "x")
        beyond = self.sf(bound)
        capped = np.where(beyond > 0, bound, 0.0)  # not inf * 0 where no TTFT is longer
        mean: Floats = self._partial_mean[np.searchsorted(self.values_s, bound, side="right")] + capped * beyond
        return mean

    @property
    def mean(self) -> float:
        """Mean TTFT in seconds."""
        return float(self._partial_mean[-1])

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """n independent draws `F^-1(u)`, shape (n,): generators with equal seeds draw the same u for every F."""
        u = checks.generator(rng).random(checks.count(n, "n"))
        if self._equal_weights:
            return self.values_s[(u * self.values_s.size).astype(np.int64)]
        return self.values_s[np.searchsorted(self.cumulative, u, side="right")]

    @cached_property
    def _partial_mean(self) -> Floats:
        mass = np.diff(self.cumulative, prepend=0.0)
        return np.concatenate([[0.0], np.cumsum(mass * self.values_s)])

    def __repr__(self) -> str:
        p50, p99 = self.quantile([0.5, 0.99])
        return f"TTFTDistribution({self.values_s.size} atoms, mean {self.mean:.3g} s, P50 {p50:.3g}, P99 {p99:.3g})"


@dataclass(frozen=True)
class ServerProfile:
    """A server: its TTFT distribution F and its decode rate in tokens per second."""

    ttft: TTFTDistribution
    decode_rate: float

    def __post_init__(self) -> None:
        checks.instance_of(self.ttft, TTFTDistribution, "ttft")
        object.__setattr__(self, "decode_rate", checks.positive(self.decode_rate, "decode_rate"))


@dataclass(frozen=True)
class DeviceProfile:
    """A device: prefill and decode rates in tokens per second, startup in seconds.

    `r_squared` says how well the measurements fit the line; NaN if the profile was given, not fitted.
    `spread`: ratios of measured TTFT to the line, equally likely, at least one, positive. `simulate` and
    `simulate_queue` draw one for each request; None: TTFT is exact. Plans, rules and `ttft` keep to the line.

    >>> DeviceProfile(prefill_rate=50.0, decode_rate=14.0, startup=0.1).ttft(20).item()
    0.5
    """

    prefill_rate: float
    decode_rate: float
    startup: float = 0.0
    r_squared: float = field(default=float("nan"), compare=False)
    spread: ArrayLike | None = field(default=None, repr=False)  # kept as a tuple: profiles are compared and hashed

    def __post_init__(self) -> None:
        for name in ("prefill_rate", "decode_rate"):
            object.__setattr__(self, name, checks.positive(getattr(self, name), name))
        object.__setattr__(self, "startup", checks.number(self.startup, "startup"))
        if self.spread is not None:
            ratios = checks.seconds(self.spread, "spread", unit=" ratios")
            if ratios.ndim != 1 or ratios.min() == 0:
                wrong = "a ratio of 0" if ratios.ndim == 1 else f"shape {ratios.shape}"
                raise InputError(f"spread must be one-dimensional and above 0, got {wrong}")
            object.__setattr__(self, "spread", tuple(ratios.tolist()))

    def ttft(self, prompt_tokens: ArrayLike) -> Floats:
        """`T_d(l) = l / prefill_rate + startup` in seconds, same shape as the lengths."""
        return checks.seconds(prompt_tokens, "prompt_tokens", unit=" tokens") / self.prefill_rate + self.startup

    def ratios(self, n: int, rng: np.random.Generator | None = None) -> Floats:
        """n independent draws from the spread, shape (n,); ones, without a draw, where TTFT is exact.

        InputError if a draw is needed and rng is missing. Generators with equal seeds draw the same ratios.
        """
        size = checks.count(n, "n")
        if self.spread is None:
            return np.ones(size)
        known = np.array(self.spread)
        return known[(checks.generator(rng).random(size) * known.size).astype(np.int64)]

    def token_s(self, prompt_tokens: ArrayLike) -> Floats:
        """Seconds from token to token of an answer to a prompt of each length, same shape: the same for all."""
        return np.full(np.shape(prompt_tokens), 1 / self.decode_rate)

    def takeover_s(self, prefilled: ArrayLike) -> Floats:
        """t_m in seconds, when the device takes over an answer: `T_d(l + n)`, same shape as the tokens prefilled."""
        return self.ttft(prefilled)

    @classmethod
    def fit(
        cls, prompt_tokens: ArrayLike, ttft_s: ArrayLike, decode_rate: float, *, spread: bool = False
    ) -> "DeviceProfile":
        """Least squares of measured TTFT on prompt length, both of shape (trials,).

        spread   keep the ratios of the measured times, which must then be above 0, to the line

        A line that would start below zero is fitted through the origin instead: no device answers before
        the request. InputError if fewer than two lengths were measured or TTFT does not grow with length.
        """
        length = checks.tokens(prompt_tokens, "prompt_tokens").astype(np.float64)
        time = checks.seconds(ttft_s, "ttft_s")
        if time.shape != length.shape or np.ptp(length) == 0:
            raise InputError(f"a fit needs one ttft_s per length and two different lengths, got {time.size} times")
        slope, startup = np.polyfit(length, time, 1)
        if startup < 0:
            slope, startup = (length @ time) / (length @ length), 0.0
        if slope * np.ptp(length) <= 1e-12 * time.max():  # what a fit of equal times leaves is rounding
            raise InputError(f"ttft_s must grow with prompt length, got a slope of {slope:.3g} s per token")
        line = slope * length + startup
        residual, around_mean = time - line, time - time.mean()
        r_squared = 1.0 - (residual @ residual) / (around_mean @ around_mean)
        ratios = time / line if spread else None
        return cls(1.0 / slope, decode_rate, float(startup), float(r_squared), ratios)
