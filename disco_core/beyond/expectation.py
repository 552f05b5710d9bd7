"""What a plan brings in expectation: what `simulate` measures over many requests with these lengths and this F."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import End
from disco_core.dispatch import DispatchPlan
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

ByLength = Mapping[int, TTFTDistribution]
# a distribution and the lengths, by their rows, whose server TTFT it is
Parts = Sequence[tuple[TTFTDistribution, Ints]]


def parts_of(ttft: "TTFTDistribution | ByLength", tokens: Ints) -> Parts:
    """F of every length. Of a mapping a length takes the entry of the next longer key, or else of the longest."""
    if not isinstance(ttft, Mapping):
        return [(checks.instance_of(ttft, TTFTDistribution, "ttft"), np.arange(tokens.size))]
    if not ttft:
        raise InputError("ttft by length must have at least one length")
    keys = sorted(checks.count(key, "a length of ttft") for key in ttft)
    entry = np.searchsorted(keys, np.minimum(tokens, keys[-1]))
    known = [checks.instance_of(ttft[key], TTFTDistribution, f"ttft[{key}]") for key in keys]
    return [(known[i], np.flatnonzero(entry == i)) for i in np.unique(entry)]


def least(
    function: Callable[[float], float], limit: float, low: float, high: float, accuracy: float = 1e-9
) -> tuple[float, float]:
    """Bounds, as close as `accuracy` relative to them, of the least t at which a falling function is at most `limit`.

    It lies from `low` to `high`; where it is near `low`, fewer steps are needed.
    """
    step = accuracy * low if low > 0 else high
    while high - low > accuracy * high:
        middle = min(low + step, (low + high) / 2)
        if function(middle) <= limit:
            high, step = middle, high
        else:
            low, step = middle, 8 * step
    return low, high


def late(ttft: TTFTDistribution, t: float) -> float:
    """`P(S > t)`."""
    below = int(np.searchsorted(ttft.values_s, t, side="right"))
    return 1.0 - float(ttft.cumulative[below - 1]) if below else 1.0


@dataclass(frozen=True, eq=False)
class Expected:
    """Expectations of a plan, computed when asked for; `parts` has each F and the lengths, by rows, that it is of."""

    plan: DispatchPlan
    lengths: LengthDistribution
    parts: Parts
    device: DeviceProfile

    @cached_property
    def mean_s(self) -> float:
        """Mean TTFT in seconds."""
        return sum(race.mean() for race in self._races)

    def quantile(self, q: float) -> float:
        """The least t in seconds with `P(TTFT > t) <= 1 - q`."""
        allowed, races = 1.0 - checks.fraction(q, "q") + 1e-12, self._races
        end_s = max(race.end() for race in races)
        _, t = least(lambda t: sum(race.late(t) for race in races), allowed, 0.0, end_s)
        return max(race.last(t) for race in races)

    @cached_property
    def shares(self) -> Floats:
        """Share of prompt tokens for which each endpoint starts, shape (endpoints,)."""
        tokens, counts = self.lengths.tokens, self.lengths.counts
        shares = np.zeros(len(End))
        for part, rows in self.parts:
            here: Any = LengthDistribution(tokens[rows], counts[rows])
            shares += (tokens[rows] @ counts[rows]) * self.plan.expected_shares(here, part, self.device)
        return shares / (tokens @ counts)

    @cached_property
    def _races(self) -> "list[_Race]":
        tokens, counts = self.lengths.tokens, self.lengths.counts
        known, races = self.plan.prompt_tokens, []
        for part, rows in self.parts:
            entry = np.searchsorted(known, np.minimum(tokens[rows], known[-1]))
            chance = self.plan.probability[entry] * (counts[rows] / counts.sum())[:, None]
            taken = chance > 0
            server_s, waits_s = (delays[entry][taken] for delays in self.plan.delays_s)
            device_s = np.repeat(self.device.ttft(tokens[rows]), taken.sum(axis=1))
            races.append(_Race(part, chance[taken], server_s, waits_s + device_s))
        return races


def expected(
    plan: DispatchPlan,
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: "TTFTDistribution | ByLength",
    device: DeviceProfile,
) -> Expected:
    """What to expect of any plan; ttft is F, or one for each length, as in `solve`."""
    checks.instance_of(plan, DispatchPlan, "plan"), checks.instance_of(device, DeviceProfile, "device")
    lengths = LengthDistribution.of(prompt_tokens)
    return Expected(plan, lengths, parts_of(ttft, lengths.tokens), device)


class _Race(NamedTuple):
    """Choices of several lengths with one F, shape (n,): the first token comes at `min(server_s + S, device_s)`."""

    ttft: TTFTDistribution
    chance: Floats
    server_s: Floats
    device_s: Floats

    def mean(self) -> float:
        """Mean TTFT in seconds, times the probability of these choices."""
        mean_s, both = self.device_s.copy(), self.device_s > self.server_s
        if both.any():
            mean_s[both] = self.server_s[both] + self.ttft.mean_min((self.device_s - self.server_s)[both])
        return float(self.chance @ mean_s)

    def late(self, t: float) -> float:
        """`P(TTFT > t)`, for these choices."""
        return float(self.chance @ ((self.device_s > t) * self.ttft.sf(self._left(t))))

    def end(self) -> float:
        """The time by which a first token has come for certain."""
        return float(np.minimum(self.server_s + self.ttft.values_s[-1], self.device_s).max())

    def last(self, t: float) -> float:
        """The last time up to t at which a first token can come."""
        below = np.searchsorted(self.ttft.values_s, self._left(t), side="right")
        by_server_s = self.server_s[below > 0] + self.ttft.values_s[below[below > 0] - 1]
        first_s = np.append(by_server_s, self.device_s[self.device_s <= t])
        return float(first_s.max(initial=0.0))

    def _left(self, t: float) -> Floats:
        """What is left of t for the server; of a sum of two times, rounding could leave a little too little."""
        return t * (1 + 1e-15) - self.server_s
