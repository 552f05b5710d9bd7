"""What every choice of when to start the constrained endpoint brings, per prompt length, before any is chosen.

Where the device is constrained, the server starts at once and the device after a wait w: TTFT is `min(S, w + T(l))`,
S the server's TTFT and T(l) the device's. TTFT is later than a deadline t only where S is and `w > t - T(l)`. Only 0
and the sample points of F are worth waiting for: between two of them a longer wait starts the device as often. A wait
of F's largest sample never starts it. Where the server is constrained, the device starts at once and the server at
once or never: when the device answers is known, so a server that starts later still is charged, and answers later.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from disco_core.beyond.expectation import Parts, late
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint
from disco_core.dispatch import NEVER
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

ATOMS = 192  # waits that are considered at first
FINER, PASSES = 48, 1  # further waits around those that a plan uses, and how often they are added
LENGTHS = {Constraint.DEVICE: 256, Constraint.SERVER: 2048}  # lengths that are told apart


@dataclass(frozen=True, eq=False)
class Lengths:
    """The prompt lengths that are told apart, each of shape (lengths,).

    tokens    the length; taken together, the longest
    chance    p(l), its share of the requests
    load      `l / E[l]`, so that `chance * load` is its share of the prompt tokens; together, their mean
    shortest  taken together, the shortest
    """

    tokens: Ints
    chance: Floats
    load: Floats
    shortest: Ints

    @classmethod
    def of(cls, lengths: LengthDistribution, most: int) -> "Lengths":
        """All lengths, or where there are more than `most`, groups of neighbours of similar weight."""
        chance = lengths.counts / lengths.counts.sum()
        mass = lengths.tokens * lengths.counts / (lengths.tokens @ lengths.counts)
        if lengths.tokens.size <= most:
            return cls(lengths.tokens, chance, lengths.tokens / lengths.mean, lengths.tokens)
        weight = np.cumsum(chance + mass)
        last = np.unique(np.append(np.searchsorted(weight, np.arange(1, most) / most * weight[-1]), weight.size - 1))
        first = np.append(0, last[:-1] + 1)
        together = np.add.reduceat(chance, first)
        return cls(lengths.tokens[last], together, np.add.reduceat(mass, first) / together, lengths.tokens[first])

    def shortened(self) -> "Lengths":
        """Of lengths taken together the shortest for all."""
        return Lengths(self.shortest, self.chance, self.load * (self.shortest / self.tokens), self.shortest)


class Options(ABC):
    """Choices of the constrained endpoint's start, from early to late; arrays have shape (lengths, choices).

    delays_s   seconds until the constrained endpoint starts, inf for never
    mean_s     mean TTFT in seconds
    share      probability that the constrained endpoint starts, times the length's load
    latest_s   a deadline that is met without the constrained endpoint
    thinned    whether some choices were left out

    With `relaxed` nothing that was left out can do better than one of them: lengths taken together are as short as
    the shortest, and a wait is as early as the one before it but starts the device as seldom as the one after it.
    """

    delays_s: Floats
    mean_s: Floats
    share: Floats
    latest_s: float
    thinned: bool = False

    def __init__(self, lengths: Lengths, parts: Parts, device: DeviceProfile, *, relaxed: bool = False) -> None:
        self.lengths, self.parts, self.device = lengths.shortened() if relaxed else lengths, parts, device
        self.device_s, self.rows = device.ttft(self.lengths.tokens), np.arange(lengths.tokens.size)

    def relaxed(self) -> "Options":
        """The same with `relaxed`, to bound what is possible with all waits and lengths."""
        return type(self)(self.lengths, self.parts, self.device, relaxed=True)

    def refined(self, choices: Ints, probability: Floats) -> "Options":
        """The same with further choices beside those of a plan, if some were left out (`thinned`)."""
        return self

    @abstractmethod
    def tail(self, t: float) -> tuple[Ints, Floats, Floats]:
        """Of each length, for a deadline t: the last choice that is of use to meet it, -1 if none is, `P(TTFT > t)`
        with any later choice, and by how much less that is with one up to it; each of shape (lengths,).
        """


class DeviceOptions(Options):
    """The device waits for 0 seconds or until a sample point of F; where F has more than ATOMS of them, for some.

    Mean TTFT between two of these waits is interpolated, which is exact where F has no sample between them and
    otherwise a lower bound, since the mean is concave in the time at which the device answers.

    grids   the waits of each part, ascending from 0, and whether others were left out; by default of `_waits`
    """

    def __init__(
        self,
        lengths: Lengths,
        parts: Parts,
        device: DeviceProfile,
        grids: "Sequence[tuple[Floats, bool]] | None" = None,
        *,
        relaxed: bool = False,
    ) -> None:
        super().__init__(lengths, parts, device, relaxed=relaxed)
        self.latest_s = max(float(ttft.values_s[-1]) for ttft, _ in parts)
        self._grids = [_waits(ttft) for ttft, _ in parts] if grids is None else grids
        self.thinned = any(thinned for _, thinned in self._grids)
        shape = self.rows.size, max(waits.size for waits, _ in self._grids)
        self.delays_s, self.mean_s, self.share = np.empty(shape), np.empty(shape), np.empty(shape)
        self._waits = []
        for (ttft, rows), (waits, thinned) in zip(parts, self._grids, strict=True):
            begin = np.append(waits[0], waits[:-1]) if relaxed and thinned else waits
            self._waits.append(begin)
            more = shape[1] - waits.size
            self.delays_s[rows] = np.pad(begin, (0, more), "edge")
            first_s = self.delays_s[rows] + self.device_s[rows, None]
            self.mean_s[rows] = np.interp(first_s, waits, ttft.mean_min(waits))
            self.share[rows] = self.lengths.load[rows, None] * np.pad(ttft.sf(waits), (0, more), "edge")

    def relaxed(self) -> "DeviceOptions":
        return DeviceOptions(self.lengths, self.parts, self.device, self._grids, relaxed=True)

    def refined(self, choices: Ints, probability: Floats) -> "DeviceOptions":
        grids = []
        for (ttft, rows), (waits, thinned) in zip(self.parts, self._grids, strict=True):
            used = np.unique(np.minimum(choices[rows][probability[rows] > 0], waits.size - 1))
            if thinned:
                edges = np.unique(np.clip(np.concatenate([used - 1, used, used + 1]), 0, waits.size - 1))
                first = np.searchsorted(ttft.values_s, waits[edges[:-1]], side="right")
                last = np.searchsorted(ttft.values_s, waits[edges[1:]])
                beside = np.diff(edges) == 1
                steps = np.arange(1, 2 + FINER // max(int(beside.sum()), 1))
                at = first[beside, None] + (last - first)[beside, None] * steps // (steps.size + 1)
                more = ttft.values_s[np.minimum(at, np.maximum(last - 1, first)[beside, None])]
                waits = np.unique(np.append(waits, more))
            grids.append((waits, thinned))
        return DeviceOptions(self.lengths, self.parts, self.device, grids)

    def tail(self, t: float) -> tuple[Ints, Floats, Floats]:
        last, tail = np.empty(self.rows.size, np.int64), np.empty(self.rows.size)
        for (ttft, rows), waits in zip(self.parts, self._waits, strict=True):
            tail[rows] = late(ttft, t)
            last[rows] = np.searchsorted(waits, t * (1 + 1e-15) - self.device_s[rows], side="right") - 1
        # a sum of two times can round to beyond the deadline where their difference does not
        while (over := (last >= 0) & (self.delays_s[self.rows, last] + self.device_s > t)).any():
            last -= over
        return last, tail, np.where(last >= 0, tail, 0.0)


class ServerOptions(Options):
    """The server starts at once or never."""

    def __init__(self, lengths: Lengths, parts: Parts, device: DeviceProfile, *, relaxed: bool = False) -> None:
        super().__init__(lengths, parts, device, relaxed=relaxed)
        self.latest_s = float(self.device_s.max())
        self.delays_s = np.broadcast_to([0.0, NEVER], (self.rows.size, 2))
        self.mean_s, self.share = np.empty(self.delays_s.shape), np.zeros(self.delays_s.shape)
        self.mean_s[:, 1], self.share[:, 0] = self.device_s, self.lengths.load
        for ttft, rows in parts:
            self.mean_s[rows, 0] = ttft.mean_min(self.device_s[rows])

    def tail(self, t: float) -> tuple[Ints, Floats, Floats]:
        slow, less = self.device_s > t, np.zeros(self.rows.size)
        for ttft, rows in self.parts:
            less[rows] = slow[rows] * (1.0 - late(ttft, t))
        return np.where(slow, 0, -1), slow.astype(np.float64), less


def _waits(ttft: TTFTDistribution) -> tuple[Floats, bool]:
    """0 and the sample points, ascending; of many some quantiles, closer in the tail; and whether they were many."""
    points = ttft.values_s[np.append(np.diff(ttft.values_s) > 0, True)]
    if thinned := points.size > ATOMS:
        even = np.arange(1, ATOMS + 1) / ATOMS
        points = np.unique(ttft.quantile(1.0 - (1.0 - even) ** 2))
    return points if points[0] == 0 else np.append(0.0, points), thinned
